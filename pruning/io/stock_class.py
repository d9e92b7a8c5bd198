"""Load a Hugging Face folder with its own class and run it: a script that knows transformers alone.

    python stock_class.py FOLDER CLASS INPUTS OUTPUTS [--trust-remote-code]

INPUTS is a safetensors file of the arguments of `forward` by name; OUTPUTS gets the tensors of what it returns by name,
and, as metadata, which keys were missing, unexpected or of another shape. It runs in a process of its own, so that
nothing of the process that wrote the folder can help to load it.
"""

from __future__ import annotations

import json
import sys


def main(folder: str, name: str, inputs: str, outputs: str, trust: bool) -> None:
    """Load, run and write."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model, info = getattr(transformers, name).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, trust_remote_code=trust,
        dtype=torch.float32, ignore_mismatched_sizes=True,
    )  # fmt: skip
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_cache", None):
            module.config.use_cache = False
    with torch.no_grad():
        found = model.eval()(**load_file(inputs))
    tensors = {key: value.contiguous() for key, value in found.items() if isinstance(value, torch.Tensor)}
    keys = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    metadata = {"class": type(model).__name__, **{kind: json.dumps(names) for kind, names in keys.items()}}
    save_file({key: value.clone() for key, value in tensors.items()}, outputs, metadata=metadata)


if __name__ == "__main__":
    _folder, _name, _inputs, _outputs, *_options = sys.argv[1:]
    main(_folder, _name, _inputs, _outputs, trust="--trust-remote-code" in _options)
