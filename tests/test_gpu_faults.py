"""What only a GPU does, told by what stands in for one: too old a card, no memory, numbers that are none."""

from types import SimpleNamespace

import pytest
import torch
from test_reflect_dit_pipeline import PLAIN
from tiny_flux import write_tiny_flux
from tiny_sana import write_tiny_sana

from reflect_core.generators import offload
from reflect_core.generators.memory import enough_memory
from reflect_core.generators.quantise import check_quantise, even
from reflect_core.presets.choice import auto_dtype
from reflect_core.presets.load import load_generator
from reflect_core.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore:CLIP sees", "ignore:T5 sees")


@pytest.mark.parametrize("device, capability, hip, family, dtype", [
    ("cpu", None, None, "FluxPipeline", "float32"), ("cpu:0", None, None, "SanaPipeline", "float32"),
    ("cuda", (8, 9), None, "FluxPipeline", "bfloat16"), ("cuda", (7, 5), None, "FluxPipeline", "float16"),
    ("cuda:1", (7, 0), None, "FluxKontextPipeline", "float16"), ("cuda", (7, 5), None, "SanaPipeline", "bfloat16"),
    ("cuda", (7, 5), None, "QwenImageEditPlusPipeline", "bfloat16"), ("mps", None, None, "FluxPipeline", "bfloat16"),
    ("cuda", (7, 5), "6.2", "FluxPipeline", "bfloat16")])
def test_a_card_before_ampere_has_no_bf16_worth_the_name(device, capability, hip, family, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert auto_dtype(device, family) == dtype


def write_tiny_kontext(folder):
    try:  # its tests' module has Qwen's too, which older versions of diffusers lack
        import tiny_editors
    except ImportError as error:
        pytest.skip(str(error))
    return tiny_editors.write_tiny_kontext(folder)


@pytest.mark.parametrize("write", [write_tiny_flux, write_tiny_sana, write_tiny_kontext])
def test_numbers_that_are_none_are_no_black_picture(write, tmp_path):
    model = load_generator(write(tmp_path))
    with torch.no_grad():
        next(parameter for name, parameter in model.transformer.named_parameters()
             if name.endswith("proj_out.bias")).fill_(torch.inf)
    with pytest.raises(UserError, match="drew no numbers: in float32.*try dtype=bfloat16 or float32"):
        model.draw([PLAIN])


@pytest.mark.parametrize("error", [
    MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"), RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory"),
    OSError("The paging file is too small for this operation to complete. (os error 1455)")])
def test_every_way_of_running_out_of_memory_names_what_to_try(error):
    with pytest.raises(UserError, match="not enough memory.*try quantise=nf4 or fp8 with offload=component"):
        with enough_memory():
            raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), OSError("no such file"), ValueError("x")])
def test_any_other_error_passes(error):
    with pytest.raises(type(error), match=str(error)):
        with enough_memory():
            raise error


def test_when_it_has_drawn_the_room_is_for_others(tmp_path, monkeypatch):
    """A judge's server may be another program on the same GPU."""
    model = load_generator(write_tiny_flux(tmp_path), device="cpu:0", offload="component")
    manager, emptied = model.places.manager, []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(manager.here))
    model.draw([PLAIN])
    assert manager.here is None and not emptied
    manager.devices = dict.fromkeys(manager.devices, SimpleNamespace(type="cuda"))
    manager.rest()
    assert emptied == [None]


def test_it_goes_home_from_an_error_too(tmp_path):
    model = load_generator(write_tiny_flux(tmp_path), device="cpu:0", offload="layers")

    def stop(step):
        assert model.places.manager.here == "transformer"
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        model.draw([PLAIN], stop)
    assert model.places.manager.here is None


def test_memory_of_a_container(monkeypatch, tmp_path):
    monkeypatch.setattr(offload, "LIMITS", (tmp_path / "limit",))
    whole = offload.main_memory()
    (tmp_path / "limit").write_text("4096\n")
    assert offload.main_memory() == 4096 < whole
    monkeypatch.delattr(offload.os, "sysconf")
    assert offload.main_memory() == 0


def test_what_a_device_cannot_do_is_said_first(tmp_path):
    with pytest.raises(UserError, match="Apple's GPUs do not have"):
        check_quantise("fp8", "mps")
    with pytest.raises(UserError, match="compile is true and option quantise is 'fp8'.*try quantise=nf4"):
        load_generator(write_tiny_flux(tmp_path), compile=True, quantise="fp8")


def test_what_a_library_left_whole_is_in_the_dtype_of_the_rest():
    part = torch.nn.ModuleDict({"wo": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)})
    assert even(part, torch.float16).wo.weight.dtype == torch.float32, "T5's grows too large in fp16"
    assert even(part, torch.bfloat16).wo.weight.dtype == torch.bfloat16
    assert part.norm.weight.dtype == torch.float32
