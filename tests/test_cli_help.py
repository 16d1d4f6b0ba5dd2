"""Help texts: everything that can be set is said, in words, without waiting for torch."""

import json
from dataclasses import fields

import pytest
from command import reflect

from reflect_core.cli.help import (
    EDIT_OPTIONS,
    FLUX_OPTIONS,
    JUDGE_OPTIONS,
    LOCAL_OPTIONS,
    PICTURES,
    SANA_OPTIONS,
    SERVER_OPTIONS,
    SETTINGS,
)
from reflect_core.cli.parser import make_parser
from reflect_core.generators.checking import LOADING
from reflect_core.generators.editors.options import KontextOptions, QwenOptions
from reflect_core.generators.flux_corrector.options import CorrectorOptions
from reflect_core.generators.reflect_dit.options import ReflectOptions
from reflect_core.judges.options import AskOptions
from reflect_core.search import POLICIES
from reflect_core.vlm.local import LocalOptions
from reflect_core.vlm.server import ServerOptions


def test_every_setting_of_every_policy_is_explained():
    assert SETTINGS.keys() == {f.name for policy in POLICIES.values() for f in fields(policy)}


def test_every_option_of_every_family_is_explained():
    assert FLUX_OPTIONS.keys() == {f.name for f in fields(CorrectorOptions)} | set(LOADING)
    assert JUDGE_OPTIONS.keys() == {f.name for f in fields(AskOptions)}
    assert LOCAL_OPTIONS.keys() == {f.name for f in fields(LocalOptions)}
    assert SERVER_OPTIONS.keys() == {f.name for f in fields(ServerOptions)}
    assert SANA_OPTIONS.keys() == {f.name for f in fields(ReflectOptions)} | set(LOADING)
    assert EDIT_OPTIONS.keys() == {f.name for kind in (KontextOptions, QwenOptions) for f in fields(kind)} | {
        "base", *LOADING}


def test_the_values_shown_are_those_of_the_policies(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["run", "--help"])
    said = capsys.readouterr().out
    for policy in POLICIES.values():
        for name, value in policy.for_budget(PICTURES).to_json().items():
            if name != "name":
                shown = value if isinstance(value, str) else json.dumps(value)
                assert f"    {name}={shown} " in said
    assert max(map(len, said.splitlines())) <= 104


@pytest.mark.parametrize("command", [["run"], ["resume"], ["replay"], ["show"], ["bench"], ["bench", "shapes"],
                                     ["bench", "speed"], ["bench", "memory"], ["bench", "comfyui"], []])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args([*command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: {' '.join(['reflect', *command])} " in said
    assert command == ["bench"] or "exit codes:" in said


def test_help_loads_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = reflect("run", "--help", cwd=tmp_path)
    assert done.code == 0 and "pool=6" in done.out
