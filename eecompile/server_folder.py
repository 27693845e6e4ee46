"""The folder that a server loads: tails of a network, laid out as Triton and MLServer expect them.

settings.json                    ports, for MLServer
repository.json                  that this is such a folder, and which models are in it
README.txt                       how to serve it
<model>/config.pbtxt             what Triton has to know
<model>/model-settings.json      what MLServer has to know
<model>/onnx_tail.py             how MLServer runs it
<model>/1/model.onnx             the tail
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from eecompile.atomic import check_replaceable, replaced_directory, write_file
from eecompile.checked_json import JsonError, canonical_json, parse_json
from eecompile.offload_rule import Tail, WireTensor

__all__ = [
    "VERSION",
    "check_server_folder",
    "folder_files",
    "refusal_to_replace",
    "server_folder",
    "write_server_folder",
]

#: The only version of each model: another content is another model.
VERSION = "1"
_FORMAT = "eecompile-server"
_MARK = "repository.json"
_HTTP_PORT, _GRPC_PORT, _METRICS_PORT = 8000, 8001, 8002


def server_folder(artifact: Path) -> Path:
    """Where the folder of an artifact is written: beside it.

    >>> server_folder(Path("out/net.artifact")).as_posix()
    'out/net.artifact.server'
    """
    return artifact.with_name(f"{artifact.name}.server")


def write_server_folder(
    destination: Path, network: str, models: Mapping[str, tuple[Tail, bytes]]
) -> None:
    """Write tails in the place of an earlier folder of this kind, or of nothing.

    Args:
        destination: the folder.
        network: the network's name.
        models: by name: what each is, and its ONNX file.

    Raises:
        CompileErrors: other things are in the way, or it cannot be written; whatever was there
            before is untouched.
    """
    with replaced_directory(destination, refusal_to_replace) as folder:
        for name, content in folder_files(network, models).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(folder / name, content)


def check_server_folder(destination: Path) -> None:
    """Refuses a place where no such folder may be written.

    Raises:
        CompileErrors: other things are in the way, or nothing can be written there.
    """
    check_replaceable(destination, refusal_to_replace)


def folder_files(network: str, models: Mapping[str, tuple[Tail, bytes]]) -> dict[str, bytes]:
    """What is in the folder, by path within it; the same for the same models."""
    listed = "\n".join(
        f"    {name}: behind exit `{tail.exit}`" for name, (tail, _) in models.items()
    )
    settings = {
        "http_port": _HTTP_PORT,
        "grpc_port": _GRPC_PORT,
        "metrics_port": _METRICS_PORT,
        "parallel_workers": 0,  # the models' own threads run them
        "server_name": f"{network} tails",
    }
    found = {
        "settings.json": canonical_json(settings),
        _MARK: canonical_json({"format": _FORMAT, "network": network, "models": sorted(models)}),
        "README.txt": _file("README.txt").format(network=network, models=listed).encode(),
    }
    for name, (tail, content) in models.items():
        found |= {
            f"{name}/config.pbtxt": _triton_config(tail).encode(),
            f"{name}/model-settings.json": canonical_json(_mlserver_settings(tail)),
            f"{name}/onnx_tail.py": _file("onnx_tail.py.txt").encode(),
            f"{name}/{VERSION}/model.onnx": content,
        }
    return found


def refusal_to_replace(folder: Path) -> str:
    """Why a folder may not be replaced, empty where it is one of these and nothing else."""
    other = "is a folder with other things in it"
    try:
        value = parse_json((folder / _MARK).read_bytes()[: 1 << 20])
        models = {str(name) for name in value["models"]}
        ours = value["format"] == _FORMAT
        more = {path.name for path in folder.iterdir()} - models
    except (OSError, JsonError, TypeError, KeyError):
        return other
    return "" if ours and more <= {_MARK, "settings.json", "README.txt"} else other


def _file(name: str) -> str:
    return (files("eecompile") / "server_files" / name).read_text(encoding="utf-8")


def _protocol_type(tensor: WireTensor) -> str:
    return tensor.dtype.upper().replace("FLOAT", "FP")


def _triton_config(tail: Tail) -> str:
    def tensor(one: WireTensor) -> str:
        dims = ", ".join(map(str, one.shape))
        kind = _protocol_type(one)
        return f'{{ name: "{one.name}" data_type: TYPE_{kind} dims: [ {dims} ] }}'

    inputs = ",\n".join(f"  {tensor(one)}" for one in tail.inputs)
    return (
        f'name: "{tail.model}"\n'
        'platform: "onnxruntime_onnx"\n'
        "max_batch_size: 0\n"  # shapes hold the network's own leading 1
        f"input [\n{inputs}\n]\n"
        f"output [\n  {tensor(tail.output)}\n]\n"
    )


def _mlserver_settings(tail: Tail) -> dict[str, Any]:
    def tensor(one: WireTensor) -> dict[str, Any]:
        return {"name": one.name, "datatype": _protocol_type(one), "shape": list(one.shape)}

    return {
        "name": tail.model,
        "implementation": "onnx_tail.OnnxTail",
        "platform": "onnxruntime",
        "versions": [tail.version],
        "inputs": [tensor(one) for one in tail.inputs],
        "outputs": [tensor(tail.output)],
        "parameters": {"version": tail.version},
    }
