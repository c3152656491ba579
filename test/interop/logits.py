"""
Loads model directories with transformers and compressed-tensors, and writes their logits, and for each linear what went
in and what came out.

    python logits.py TOKENS DIRECTORY OUT DIRECTORY OUT ...

TOKENS are numbers with commas between. Each OUT is a safetensors file in float64: "logits" [tokens, vocabulary], and
"<module>.in" and "<module>.out" for every linear of the blocks. Everything is computed in float64.

transformers does not apply transform_config; the package that defines it does, so that is asked to here.
"""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.transform import TransformConfig, apply_transform_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def apply_transforms(model, directory):
    config = json.loads((directory / "config.json").read_text()).get("quantization_config", {})
    groups = (config.get("transform_config") or {}).get("config_groups")
    if not groups:
        return
    for group in groups.values():
        group["precision"] = "torch.float64"
    apply_transform_config(model, TransformConfig(config_groups=groups))
    stored = load_file(directory / "model.safetensors")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.endswith("_input.weight"):
            parameter.data.copy_(stored.pop(name))
    left = [name for name in stored if name.endswith("_input.weight")]
    assert not left, f"transforms that nothing asked for: {left}"


tokens, *pairs = sys.argv[1:]
torch.set_num_threads(2)
inputs = torch.tensor([[int(t) for t in tokens.split(",")]])
for directory, out in zip(pairs[::2], pairs[1::2]):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    apply_transforms(model, Path(directory))
    seen = {}

    def watch(name):
        def before(_, args):
            seen[f"{name}.in"] = args[0][0].clone()

        def after(_module, _args, output):
            seen[f"{name}.out"] = output[0].clone()

        return before, after

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            before, after = watch(name)
            module.register_forward_pre_hook(before, prepend=True)
            module.register_forward_hook(after)
    with torch.no_grad():
        seen["logits"] = model(inputs).logits[0]
    save_file({name: value.to(torch.float64).contiguous() for name, value in seen.items()}, out)
