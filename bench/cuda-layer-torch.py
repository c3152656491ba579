"""PyTorch's FP16 statement of the layer of cuda-layer.ts in captured graphs: the peer where PyTorch is installed. Eager with the
attention that PyTorch chooses, with FlashAttention and with cuDNN's; the same compiled with --compile."""
import contextlib, math, statistics, sys
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HIDDEN, INTERMEDIATE, HEADS, DIM, LAYERS = 4096, 11008, 32, 128, 4
torch.manual_seed(0)
device = "cuda"


def weight(rows, cols):
    return torch.randn(rows, cols, device=device, dtype=torch.float16) * (0.5 / math.sqrt(cols))


layers = [
    dict(qkv=weight(3 * HIDDEN, HIDDEN), o=weight(HIDDEN, HIDDEN), up=weight(2 * INTERMEDIATE, HIDDEN), down=weight(HIDDEN, INTERMEDIATE))
    for _ in range(LAYERS)
]
gain = torch.ones(HIDDEN, device=device, dtype=torch.float16)


def rope(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def run(x, caches, start, cos, sin):
    batch, tokens, _ = x.shape
    for w, (keys, values) in zip(layers, caches):
        h = F.rms_norm(x, (HIDDEN,), gain, 1e-5)
        q, k, v = (t.view(batch, tokens, HEADS, DIM).transpose(1, 2) for t in F.linear(h, w["qkv"]).chunk(3, dim=-1))
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        keys[:, :, start : start + tokens].copy_(k)
        values[:, :, start : start + tokens].copy_(v)
        mixed = F.scaled_dot_product_attention(q, keys, values, is_causal=tokens > 1)
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, tokens, HIDDEN), w["o"])
        gate, up = F.linear(F.rms_norm(x, (HIDDEN,), gain, 1e-5), w["up"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, w["down"])
    return x


def measure(step):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for i in range(13):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        torch.cuda.synchronize()
        if i > 1:
            times.append(a.elapsed_time(b) * 1000 / LAYERS)
    return statistics.median(times)


def scenario(title, batch, tokens, cached):
    caches = [tuple(torch.randn(batch, HEADS, cached + tokens, DIM, device=device, dtype=torch.float16) for _ in range(2)) for _ in layers]
    x = torch.randn(batch, tokens, HIDDEN, device=device, dtype=torch.float16)
    angle = torch.arange(cached, cached + tokens, device=device)[:, None] / 10000 ** (torch.arange(DIM // 2, device=device) / (DIM // 2))
    cos, sin = angle.cos().half(), angle.sin().half()
    ways = {"chosen": None, "FlashAttention": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    for name, backend in ways.items():
        try:
            with torch.no_grad(), sdpa_kernel(backend) if backend else contextlib.nullcontext():
                line = f"{title}, attention {name}: eager {measure(lambda: run(x, caches, cached, cos, sin)):.1f} µs"
                if "--compile" in sys.argv:
                    torch.compiler.reset()
                    compiled = torch.compile(run)
                    line += f", compiled {measure(lambda: compiled(x, caches, cached, cos, sin)):.1f} µs"
        except RuntimeError as error:
            line = f"{title}, attention {name}: not possible ({str(error).splitlines()[0][:100]})"
        print(line, flush=True)


print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
scenario("prefill 2048", 1, 2048, 0)
for batch in (1, 16, 64):
    scenario(f"decode batch {batch}", batch, 1, 2048)
