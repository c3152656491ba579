"""PyTorch's statement of the training step of cuda-step.ts, eager or with --compile: the peer where PyTorch is installed. Same block, sites and
parameters (spec: docs/methods.md, FlatQuant); products in bf16 by autocast, parameters and their gradients in float32."""
import math, statistics, sys, time
import torch
import torch.nn.functional as F

BATCH, TIME, REPEATS = 4, 2048, 7
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, DIM = 4096, 14336, 32, 8, 128
torch.manual_seed(0)
torch.set_default_device("cuda")
parameters = []


def learned(value):
    value = value.clone().requires_grad_()
    parameters.append(value)
    return value


class Small:
    """P = U diag(s) Vᵀ with U and V by Cayley maps of free seeds."""

    def __init__(self, n):
        self.seeds = [learned(0.1 * torch.randn(n, n)) for _ in range(2)]
        self.s = learned(torch.ones(n))

    def matrices(self):
        """P and P⁻ᵀ."""
        u, v = (cayley(x) for x in self.seeds)
        return (u * self.s) @ v.T, (u / self.s) @ v.T


# Not compiled: PyTorch's compiler fails in `solve`.
@torch.compiler.disable
def cayley(x):
    with torch.autocast("cuda", enabled=False):
        lower = x.tril()
        a = (lower - lower.T) / 2
        eye = torch.eye(len(x))
        return torch.linalg.solve(eye - a, eye + a)


class Site:
    def __init__(self, left, right, diag=True):
        self.pair = Small(left), Small(right)
        self.diag = learned(torch.ones(left * right)) if diag else None

    def matrices(self):
        (l, l_inverse), (r, r_inverse) = (small.matrices() for small in self.pair)
        return (l, r), (l_inverse, r_inverse)


def kronecker(x, pair):
    left, right = pair
    return (left.T @ x.unflatten(-1, (len(left), len(right))) @ right).flatten(-2)


def straight_round(x):
    return x + (x.round() - x).detach()


def clipped_extremes(x, clip):
    share = torch.sigmoid(clip)
    return x.amax(-1, keepdim=True).clamp(min=0) * share[0], x.amin(-1, keepdim=True).clamp(max=0) * share[1]


def quantize_rows(x, clip):
    """4 bits, symmetric, a scale per row, learned clipping."""
    high, low = clipped_extremes(x, clip)
    scale = torch.maximum(high, -low) / 7
    return straight_round(x / scale).clamp(-8, 7) * scale


def quantize_groups(x, clip):
    """4 bits, asymmetric, a scale and a zero point per head and token."""
    high, low = clipped_extremes(x, clip)
    scale = (high - low) / 15
    zero = (-low / scale).round().detach()
    return (straight_round(x / scale + zero).clamp(0, 15) - zero) * scale


class Linear:
    def __init__(self, rows, cols):
        self.weight = torch.randn(rows, cols) / math.sqrt(cols)
        self.clip_rows = learned(torch.full((2, rows, 1), 4.0))
        self.clip_activation = learned(torch.full((2,), 4.0))

    def quantized(self, inverse, diag, rows_by=None):
        w = kronecker(self.weight if diag is None else self.weight / diag, inverse)
        high, low = w.amax(-1, keepdim=True), w.amin(-1, keepdim=True)
        share = torch.sigmoid(self.clip_rows)
        w = torch.maximum(torch.minimum(w, high * share[0]), low * share[1])
        if rows_by is not None:
            w = (rows_by.T @ w.unflatten(0, (KV_HEADS, DIM))).flatten(0, 1)
        scale = (w.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-5)
        return straight_round(w / scale).clamp(-8, 7) * scale

    def __call__(self, x, weight):
        return F.linear(quantize_rows(x, self.clip_activation), weight)


attn_in, mlp_in, mlp_down = Site(64, 64), Site(64, 64), Site(112, 128)
over_heads, key_head, value_head = Small(HEADS), Small(DIM), Small(DIM)
q, k, v = Linear(HEADS * DIM, HIDDEN), Linear(KV_HEADS * DIM, HIDDEN), Linear(KV_HEADS * DIM, HIDDEN)
o = Linear(HIDDEN, HEADS * DIM)
gate, up, down = Linear(INTERMEDIATE, HIDDEN), Linear(INTERMEDIATE, HIDDEN), Linear(HIDDEN, INTERMEDIATE)
clip_key, clip_value = learned(torch.full((2,), 4.0)), learned(torch.full((2,), 4.0))
gain = torch.ones(HIDDEN, dtype=torch.bfloat16)
angle = torch.arange(TIME)[:, None] / 500000 ** (torch.arange(DIM // 2) / (DIM // 2))
cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()


def rope(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def heads_of(x, heads):
    return x.unflatten(-1, (heads, DIM)).transpose(1, 2)


def block(x):
    pair, inverse = attn_in.matrices()
    p_value, p_value_inverse = value_head.matrices()
    p_key, p_key_inverse = key_head.matrices()
    p_heads, p_heads_inverse = over_heads.matrices()
    h = kronecker(F.rms_norm(x, (HIDDEN,), gain, 1e-5) * attn_in.diag, pair)
    queries = rope(heads_of(q(h, q.quantized(inverse, attn_in.diag)), HEADS)) @ p_key_inverse
    keys = quantize_groups(rope(heads_of(k(h, k.quantized(inverse, attn_in.diag)), KV_HEADS)) @ p_key, clip_key)
    values = quantize_groups(heads_of(v(h, v.quantized(inverse, attn_in.diag, p_value)), KV_HEADS), clip_value)
    mixed = F.scaled_dot_product_attention(queries, keys.to(queries.dtype), values.to(queries.dtype), is_causal=True, enable_gqa=True)
    mixed = (p_heads.T @ mixed.transpose(1, 2)).flatten(-2)
    x = x + o(mixed, o.quantized((p_heads_inverse, p_value_inverse), None))
    pair, inverse = mlp_in.matrices()
    h = kronecker(F.rms_norm(x, (HIDDEN,), gain, 1e-5) * mlp_in.diag, pair)
    h = F.silu(gate(h, gate.quantized(inverse, mlp_in.diag))) * up(h, up.quantized(inverse, mlp_in.diag))
    pair, inverse = mlp_down.matrices()
    return x + down(kronecker(h * mlp_down.diag, pair), down.quantized(inverse, mlp_down.diag))


compiled = "--compile" in sys.argv
if compiled:
    block = torch.compile(block)
inputs = torch.randn(BATCH, TIME, HIDDEN)
targets = torch.randn(BATCH, TIME, HIDDEN)
optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01)


def step():
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = block(inputs.bfloat16())
    loss = F.mse_loss(out.float(), targets)
    (loss / loss.detach()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
for _ in range(3):
    step()
torch.cuda.synchronize()
torch.cuda.reset_peak_memory_stats()
times = []
for _ in range(REPEATS):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    loss = step()
    b.record()
    torch.cuda.synchronize()
    times.append(a.elapsed_time(b))
start = time.perf_counter()
for _ in range(REPEATS):
    step()
torch.cuda.synchronize()
together = (time.perf_counter() - start) / REPEATS * 1000
print(
    f"{'compiled' if compiled else 'eager'} step: {statistics.median(times):.1f} ms on the device (median of {REPEATS}), {together:.1f} ms in a row, "
    f"peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB; loss {loss.item():.4f}, {len(parameters)} parameters"
)
