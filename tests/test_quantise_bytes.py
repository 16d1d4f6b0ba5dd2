"""The table of memory counts for packed weights what the packages really keep."""

import copy

import pytest
import torch
from flux_files import write_base
from test_quantise import needs  # noqa: F401
from tiny_sana import write_tiny_sana

from reflect_core.bench.memory import weights_of
from reflect_core.bench.true_size import LARGE, _keep
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT

FAMILIES = {"flux": (FluxCorrector, write_base), "sana": (ReflectDiT, lambda to: write_tiny_sana(to, wide=True))}


def kept(part):
    """Bytes of a part on the device, with the scales, which are no parameters."""
    found = {id(tensor): tensor for tensor in (*part.parameters(), *part.buffers())}
    for weight in list(found.values()):
        for scale in (getattr(getattr(weight, "quant_state", None), "absmax", None), getattr(weight, "SCB", None)):
            if scale is not None:
                found[id(scale)] = scale
    return sum(tensor.nbytes for tensor in found.values())


@pytest.mark.parametrize("quantise", ["fp8", "nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_of_packed_parts(family, quantise, tmp_path, needs):  # noqa: F811
    needs(quantise)
    cls, write = FAMILIES[family]
    folder = write(tmp_path)
    how = {} if family == "flux" else {"image_tokens": 16}
    plain = cls.from_folder(folder, dtype=torch.bfloat16, **how)
    packed = cls.from_folder(folder, dtype=torch.bfloat16, quantise=quantise, **how)
    for name, part in packed.parts.items():
        computed = copy.deepcopy(plain.parts[name])
        if name in LARGE[family]:
            _keep(computed, quantise)
            assert kept(part) < kept(plain.parts[name])
        assert kept(part) == weights_of(computed), name
