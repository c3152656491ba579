"""Writes a checkpoint with LLaMA-3-8B's shapes and random weights: bf16, safetensors in shards of 4 GB, with an index.

`python3 bench/llama-8b-weights.py DIRECTORY TOKENIZER [--layers 32] [--grow GIB]`: the tokenizer's files are copied from
the directory TOKENIZER (its vocabulary may be smaller). Needs torch and safetensors, uses a GPU where there is one, and
16 GB of disk; a checkpoint that is there already is left alone. --grow touches so much memory first and gives it back, for
machines whose memory grows as it is used (a run is refused where too little seems free)."""

import json
import os
import shutil
import sys
import time

import torch
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 4096, 14336, 32, 8, 128256
SHARD = 4 << 30


def flag(name, default):
    return int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else default


directory, tokenizer = sys.argv[1:3]
layers, grow = flag("--layers", 32), flag("--grow", 0)
if grow:
    start = time.time()
    blocks = [torch.ones(1 << 28, dtype=torch.float32) for _ in range(grow)]
    del blocks
    print(f"touched {grow} GiB in {time.time() - start:.0f} s")
index_path = os.path.join(directory, "model.safetensors.index.json")
if os.path.exists(index_path):
    print(f"{directory} is there already")
    sys.exit(0)
os.makedirs(directory, exist_ok=True)
for name in ["tokenizer.json", "tokenizer_config.json"]:
    shutil.copy(os.path.join(tokenizer, name), directory)
config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": layers,
    "head_dim": HIDDEN // HEADS,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCAB,
}
with open(os.path.join(directory, "config.json"), "w") as file:
    json.dump(config, file, indent=1)

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(8)
kv = KV_HEADS * HIDDEN // HEADS


def names():
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN), 1.0
    for i in range(layers):
        at = f"model.layers.{i}."
        # What adds itself to the residual stream is smaller, as in trained models, so that the stream stays in range.
        small = 0.5 / layers**0.5
        for part, rows, columns, size in [
            ("self_attn.q_proj", HIDDEN, HIDDEN, 1.0),
            ("self_attn.k_proj", kv, HIDDEN, 1.0),
            ("self_attn.v_proj", kv, HIDDEN, 1.0),
            ("self_attn.o_proj", HIDDEN, HIDDEN, small),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN, 1.0),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN, 1.0),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE, small),
        ]:
            yield f"{at}{part}.weight", (rows, columns), size / columns**0.5
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            yield f"{at}{norm}.weight", (HIDDEN,), None
    yield "model.norm.weight", (HIDDEN,), None
    yield "lm_head.weight", (VOCAB, HIDDEN), HIDDEN**-0.5


def tensor(shape, deviation):
    made = torch.empty(shape, dtype=torch.float32, device=device)
    made = made.normal_(1.0, 0.1) if deviation is None else made.normal_(0.0, deviation)
    return made.to(torch.bfloat16).cpu()


start, written, index, shard, size = time.time(), [], {}, {}, 0


def flush():
    global shard, size
    if shard:
        name = f"model-{len(written) + 1:05d}.safetensors"
        save_file(shard, os.path.join(directory, name))
        index.update({key: name for key in shard})
        written.append(size)
    shard, size = {}, 0


for name, shape, deviation in names():
    made = tensor(shape, deviation)
    if size + made.nbytes > SHARD:
        flush()
    shard[name] = made
    size += made.nbytes
flush()
with open(index_path + ".new", "w") as file:
    json.dump({"metadata": {"total_size": sum(written)}, "weight_map": index}, file)
os.rename(index_path + ".new", index_path)
print(f"wrote {sum(written) / 1e9:.1f} GB in {len(written)} shards, {time.time() - start:.0f} s")
