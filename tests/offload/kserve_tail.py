"""A KServe server for one folder of tails: a program for the Python that has KServe.

python kserve_tail.py FOLDER HTTP_PORT GRPC_PORT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer


class OnnxTail(Model):  # type: ignore[misc,unused-ignore]
    def __init__(self, folder: Path) -> None:
        super().__init__(folder.name)
        self._settings = json.loads((folder / "model-settings.json").read_text())
        path = folder / self._settings["parameters"]["version"] / "model.onnx"
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(path), providers=providers)
        self.ready = True

    async def get_input_types(self) -> Any:
        return self._settings["inputs"]

    async def get_output_types(self) -> Any:
        return self._settings["outputs"]

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        feeds = {one.name: one.as_numpy() for one in payload.inputs}
        (described,) = self._settings["outputs"]
        (found,) = self._session.run([described["name"]], feeds)
        output = InferOutput(described["name"], list(found.shape), described["datatype"])
        output.set_data_from_numpy(found, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    folder, http_port, grpc_port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    models = [OnnxTail(path.parent) for path in sorted(folder.glob("*/config.pbtxt"))]
    ModelServer(http_port=http_port, grpc_port=grpc_port, workers=1).start(models)
