"""Weights for a backbone, from where the recipe says: a published name, a file, or a folder of ours. Nothing is unpickled.

Published files differ from a backbone in small ways, and those are bridged: prefixes of names, the classifier, a stem for
colour images on gray ones, the positions of another image size. What else differs is an error that lists it.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml import tokenizing
from ml.choice import Choice
from ml.contracts import DataSpec, InputError
from ml.model import read_described, read_tensors

PREFIX = re.compile(r"^(module\.|backbone\.|model\.|net\.|bert\.|transformer\.|_orig_mod\.)+")
CLASSIFIERS = ("fc.", "head.", "heads.", "classifier.", "head_dist.", "pooler.", "cls.", "lm_head.")
CONSTANTS = re.compile(r"embeddings\.position_ids|h\.\d+\.attn\.(masked_)?bias|(en|de)coder\.embed_tokens\.weight|final_logits_bias")
"""What files hold beside their weights: old ones of BERT and GPT-2 constants, those of BART its embedding again and a bias of 0."""
WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict")
BESIDE = ("backbone.safetensors", "model.safetensors", "pytorch_model.bin")
"""Files whose tokenizer stands beside them."""
LISTED = 12  # differences that an error names


def load_weights(backbone: nn.Module, where: str | Path, chosen: Choice, spec: DataSpec | None = None) -> dict[str, Any]:
    """Loads into `backbone`, built from `chosen` for the data of `spec`, what `where` names; raises InputError and leaves it as it was.

    Gives, JSON-able: source, tensors (how many), adapted (names of those made to fit), ignored (names of those left unused).

    `where` is (1) a folder with backbone.json or model.json of ours, or with Hugging Face's model.safetensors, (2) a file
    .safetensors, .pt or .pth, (3) a name of published weights, such as IMAGENET1K_V1. Weights whose tokenizer stands beside them must
    have been trained with that of `spec`: with another, their tokens' vectors would mean other tokens.
    """
    where = str(where)
    tensors = {_plain(name): value for name, value in _read(backbone, where, chosen).items()}
    if spec is not None and "tokenizer" in spec.statistics:
        _check_tokenizer(where, spec.statistics["tokenizer"])
    own = {PREFIX.sub("", name): (name, value) for name, value in backbone.state_dict().items()}
    state, adapted, wrong = {}, [], []
    for name, (full, value) in own.items():
        if name not in tensors:
            # A counter of batches, which some files lack, changes nothing in what the network computes.
            if not name.endswith("num_batches_tracked"):
                wrong.append(f"missing {name} {_shape(value)}")
            continue
        given = tensors[name]
        if given.shape != value.shape:
            given = _fitted(name, given, value)
            if given is None:
                wrong.append(f"{name} is {_shape(tensors[name])} in the weights and {_shape(value)} in the backbone")
                continue
            adapted.append(name)
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            wrong.append(f"{name} holds values that are not finite")
        state[full] = given
    ignored = sorted(tensors.keys() - own.keys())
    surplus = [name for name in ignored if not (name.startswith(CLASSIFIERS) or CONSTANTS.fullmatch(name))]
    wrong += [f"unexpected {name} {_shape(tensors[name])}" for name in surplus]
    if wrong:
        raise InputError(_mismatch(where, chosen, wrong, tensors))
    backbone.load_state_dict(state, strict=False)
    return {"source": where, "tensors": len(state), "adapted": adapted, "ignored": ignored}


def weights_digest(where: str | Path) -> str:
    """A digest that changes with the weights: of the files' contents, or of the published name."""
    path = Path(where)
    if path.is_dir():
        files = [file for kind in ("backbone", "model") for file in (path / f"{kind}.json", path / f"{kind}.safetensors") if file.is_file()][:2]
    else:
        files = [path] if path.is_file() else []
    if not files:
        return hashlib.sha256(f"published {where}".encode()).hexdigest()
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _read(backbone: nn.Module, where: str, chosen: Choice) -> Mapping[str, Tensor]:
    path = Path(where)
    if path.is_dir():
        for kind in ("backbone", "model"):
            if (path / f"{kind}.json").is_file():
                return _ours(path, kind, chosen)
        if (path / "model.safetensors").is_file():
            return read_tensors(path / "model.safetensors")
        raise InputError(f"{path} holds neither backbone.json nor model.json, nor model.safetensors: give a folder that warmstart wrote, or a weights file")
    if path.is_file():
        if path.suffix == ".safetensors":
            kind = path.stem
            return _ours(path.parent, kind, chosen) if kind in ("backbone", "model") and path.with_suffix(".json").is_file() else read_tensors(path)
        return _read_torch(path)
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt") or "/" in where:
        raise InputError(f"there is no weights file {where}")
    published = getattr(backbone, "published", None)
    if published is None:
        raise InputError(f"there is no file {where!r}, and {chosen.name.value} has no published weights: use `random`, a file or models:/NAME@ALIAS")
    return published(where)


def _check_tokenizer(where: str, tokenizer: str) -> None:
    path = Path(where)
    folder = path if path.is_dir() else path.parent if path.name in BESIDE else None
    if folder is None or not any((folder / name).is_file() for name in tokenizing.FILES):
        return  # nothing tells what the weights read
    found = tokenizing.difference(tokenizer, tokenizing.read(str(folder)))
    if found:
        raise InputError(
            f"the weights {where} were trained with another tokenizer than that of these data: {found}. "
            f"Set data.modality.options.tokenizer_path={folder}, so that the data are read with theirs"
        )


def _plain(name: str) -> str:
    """The name of a tensor without prefixes, as it is today: the first BERT files call the weights of their norms gamma and beta."""
    return PREFIX.sub("", name).replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _ours(folder: Path, kind: str, chosen: Choice) -> Mapping[str, Tensor]:
    described, tensors = read_described(folder, kind)
    saved = described.get("backbone")
    name = saved.get("name") if isinstance(saved, dict) else None
    if name != chosen.name.value:
        raise InputError(f"the weights in {folder} are of backbone {name!r}, the recipe asks for {chosen.name.value!r}: set backbone.name={name}")
    if kind == "model":
        return {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    return tensors


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a torch file, read without running any code in it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of pickle protocols that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is a pickle that holds more than tensors, and loading it could run any code: refused. Save the weights alone, "
            f"with torch.save(model.state_dict(), ...), or as safetensors."
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path} is damaged or no torch file: {' '.join(str(error).split())[:200]}") from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, expected tensors by name (a state_dict)")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors by name, expected a state_dict")
    return tensors


def _fitted(name: str, given: Tensor, wanted: Tensor) -> Tensor | None:
    """`given` made to the shape of `wanted`, where there is an accepted way."""
    if given.ndim == 4 and wanted.shape == (given.shape[0], 1, *given.shape[2:]) and given.shape[1] == 3:
        return given.sum(1, keepdim=True)  # a gray image is one with equal channels
    if given.ndim == 4 and given.shape[1] == 1 and wanted.shape == (given.shape[0], 3, *given.shape[2:]):
        return given.expand_as(wanted) / 3
    if name.endswith(("pos_embedding", "pos_embed")) and given.ndim == wanted.ndim == 3 and given.shape[2] == wanted.shape[2]:
        return _positions(given, wanted.shape[1])
    return None


def _positions(given_1TD: Tensor, wanted: int) -> Tensor | None:
    """Positions of one token and a square grid of patches, for a grid of another side."""
    width = given_1TD.shape[2]
    old, new = (round((tokens - 1) ** 0.5) for tokens in (given_1TD.shape[1], wanted))
    if old**2 + 1 != given_1TD.shape[1] or new**2 + 1 != wanted:
        return None
    grid_1DHW = given_1TD[:, 1:].float().transpose(1, 2).reshape(1, width, old, old)
    grid_1DHW = F.interpolate(grid_1DHW, (new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([given_1TD[:, :1], grid_1DHW.flatten(2).transpose(1, 2).to(given_1TD.dtype)], 1)


def _mismatch(where: str, chosen: Choice, wrong: list[str], tensors: Mapping[str, Tensor]) -> str:
    kinds: dict[str, list[str]] = {}
    for line in wrong:
        kinds.setdefault(line.split()[0] if line.startswith(("missing ", "unexpected ")) else "", []).append(line)
    lines = [line for kind in kinds.values() for line in kind[: LISTED // len(kinds)]]
    lines += [f"and {len(wrong) - len(lines)} more"] if len(wrong) > len(lines) else []
    hint = ""
    if "stem" in type(chosen.parsed()).model_fields and any(line.startswith("conv1.weight is") for line in wrong) and len(wrong) == 1:
        kernel = tensors["conv1.weight"].shape[-1]
        hint = f"\nOnly the stem differs: set backbone.options.stem={'standard' if kernel == 7 else 'small'}."
    if any("conv_proj.weight is" in line for line in wrong):
        hint = f"\nThe patches differ: set backbone.options.patch={tensors['conv_proj.weight'].shape[-1]}."
    if "config" in type(chosen.parsed()).model_fields and (Path(where) / "config.json").is_file():
        hint = f"\nSet backbone.options.config={where}, which takes the shape from there."
    return f"the weights {where} do not fit the backbone {chosen.name.value}:\n" + "\n".join(f"  {line}" for line in lines) + hint


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
