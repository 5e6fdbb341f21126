"""Who is measured: runtimes, their precisions, and what they run in and on."""

from __future__ import annotations

from dataclasses import dataclass

STAGES = ("text_encoder", "unet", "vae_decoder")
KINDS = ("fp32", "16 bit", "int8")
"""Only contenders of one kind are compared: fp32; bf16 or fp16; int8, with what is left in any other."""


@dataclass(frozen=True)
class Processor:
    """An older processor, which runtimes are shown instead of this one: it has neither AVX-512 nor AMX.

    Attributes:
        avx_vnni: whether it has that.
    """

    avx_vnni: bool

    @property
    def units(self) -> tuple[str, str]:
        """Labels of `peers.peaks.UNITS` that are left."""
        return "fp32 AVX2", "int8 AVX-VNNI" if self.avx_vnni else "int8 AVX2, saturating"


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        runtime: as `peers.runtimes.LOADERS` calls it.
        precision: what it computes in.
        kind: of `KINDS`.
        environment: of `peers.preparation.PACKAGES`; "" for the interpreter that runs this.
        recipe: the model that it loads, of `peers.convert.RECIPES`; for mdrt the format of its bundle.
        stages: where it is measured.
        amx: whether it uses Intel's AMX, if there is any; it is then measured with and without.
        unit: the kind of arithmetic whose peak it is held against.
        limit: what it is told not to use, in words.
        older: the processor that it is shown; None: the one there is.
    """

    runtime: str
    precision: str
    kind: str
    environment: str
    recipe: str
    unit: str
    stages: tuple[str, ...] = STAGES
    amx: bool = False
    limit: str = ""
    older: Processor | None = None

    @property
    def label(self) -> str:
        """The precision, and what the contender is told not to use."""
        return f"{self.precision}, {self.limit}" if self.limit else self.precision


CONTENDERS = (
    Contender("mdrt", "fp32", "fp32", "", "fp32", "fp32"),
    Contender("OpenVINO", "fp32", "fp32", "openvino", "openvino-fp32", "fp32"),
    Contender("ONNX Runtime", "fp32", "fp32", "onnxruntime", "onnx-fp32", "fp32"),
    Contender("ncnn", "fp32", "fp32", "ncnn", "ncnn-fp32", "fp32"),
    Contender("MNN", "fp32", "fp32", "mnn", "mnn-fp32", "fp32"),
    Contender("mdrt", "fp16", "16 bit", "", "fp16", "fp32"),
    Contender("OpenVINO", "bf16", "16 bit", "openvino", "openvino-fp32", "bf16", amx=True),
    Contender("ncnn", "bf16", "16 bit", "ncnn", "ncnn-fp32", "bf16"),
    Contender("mdrt", "int8", "int8", "", "int8", "int8", amx=True),
    Contender("OpenVINO", "int8", "int8", "openvino", "openvino-int8", "int8", amx=True),
    Contender("OpenVINO", "int8 + bf16", "int8", "openvino", "openvino-int8", "int8", amx=True),
    Contender("ONNX Runtime", "int8 QDQ", "int8", "onnxruntime", "onnx-int8-qdq", "int8", amx=True),
    Contender(
        "ONNX Runtime",
        "int8 dynamic",
        "int8",
        "onnxruntime",
        "onnx-int8-dynamic",
        "int8",
        stages=("text_encoder",),  # it quantises matrix products only: slow in the UNet, and the decoder has none
        amx=True,
    ),
)


LIMITS = {
    "AVX2": Processor(avx_vnni=False),
    "AVX-VNNI": Processor(avx_vnni=True),
}
