"""PyTorch modules with given weights, in place of the networks of other programs."""

from collections.abc import Mapping

import numpy as np
import torch


def from_tensors(tensors: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """Make a tree of modules whose state dict has these tensors.

    Matrices become linear layers, tables with "embed_tokens" in their name embeddings, and larger tensors convolutions.
    """
    root = torch.nn.Module()
    for name, value in tensors.items():
        *parents, kind = name.split(".")
        if kind != "weight" or value.ndim < 2:
            continue
        bias = tensors.get(name.removesuffix("weight") + "bias")
        _parent(root, parents[:-1]).add_module(parents[-1], _layer(name, value, bias))
    for name, value in tensors.items():
        *parents, kind = name.split(".")
        parent = _parent(root, parents)
        if kind not in dict(parent.named_parameters(recurse=False)):
            parent.register_parameter(kind, torch.nn.Parameter(torch.from_numpy(value.copy())))
    state = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
    root.load_state_dict(state, strict=True)
    return root


def _layer(name: str, value: np.ndarray, bias: np.ndarray | None) -> torch.nn.Module:
    rows, columns = value.shape[:2]
    if "embed_tokens" in name:
        return torch.nn.Embedding(rows, columns)
    if value.ndim == 2:
        return torch.nn.Linear(columns, rows, bias=bias is not None)
    convolution = {3: torch.nn.Conv1d, 4: torch.nn.Conv2d, 5: torch.nn.Conv3d}[value.ndim]
    return convolution(columns, rows, value.shape[2:], bias=bias is not None)


def _parent(module: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    for name in names:
        if name not in module._modules:
            module.add_module(name, torch.nn.Module())
        module = module._modules[name]
    return module
