"""How a question is worded for a model in this process: its template, its tokens, its thoughts, its own files."""

import json
import re
import shutil

import pytest
import torch
import transformers
from test_vlm_local import change_json, pictures
from tiny_vlm import write_tiny_gemma, write_tiny_llava, write_tiny_qwen

from reflect_core.types import UserError
from reflect_core.vlm import eyes
from reflect_core.vlm.chat import ALL_THOUGHT, Question
from reflect_core.vlm.local import Local, LocalOptions
from reflect_core.vlm.reader import _looking_once

WRITERS = {"qwen": write_tiny_qwen, "llava": write_tiny_llava}
BEGIN = "{% if add_generation_prompt %}"
CHOICE = (BEGIN + "{{ '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false "
          "else '<think>\n' }}{% endif %}")
"""As of Qwen3.5: behind whatever else begins an answer."""
ALWAYS = BEGIN + "{{ '<think>\n' }}{% endif %}"
"""As of Qwen3-VL's thinking variants."""
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def template(folder, before="", behind=""):
    """The folder, with more in its chat template."""
    for name in ("tokenizer_config.json", "chat_template.json"):
        one = json.loads((folder / name).read_text())["chat_template"]
        change_json(folder / name, chat_template=before + one + behind)
    return folder


def load(folder, **options):
    return Local.from_folder(LocalOptions(str(folder), device="cpu", **options))


def prompt(chat, question):
    sight = None if question.picture is None else chat.eyes.look(question.picture)
    return chat.eyes.tokenizer.decode(chat.eyes.inputs(question, sight).ids[0])


@pytest.mark.parametrize("kind", WRITERS)
def test_a_model_is_told_not_to_think_where_its_template_can_say_so(tmp_path, kind):
    chat = load(template(WRITERS[kind](tmp_path), behind=CHOICE))
    question = Question("Is it red?", pictures(1)[0], "Be strict.", yes_no=True)
    assert prompt(chat, question).endswith("<think>\n\n</think>\n\n")
    assert chat.ask([question])[0].yes is not None


@pytest.mark.parametrize("kind", WRITERS)
def test_where_a_template_cannot_say_so_nothing_is_warned_of(tmp_path, kind, caplog):
    chat = load(WRITERS[kind](tmp_path))
    caplog.clear()
    assert chat.ask([Question("Is it red?", pictures(1)[0], yes_no=True)])[0].yes is not None and not caplog.records


def says(chat, monkeypatch, text):
    """Make it say this, and then its end; the text's marks are tokens where it has them."""
    tokens = iter([*chat.eyes.tokenizer(text, add_special_tokens=False).input_ids, *chat.ends][:50])

    def one(*_):
        return torch.nn.functional.one_hot(torch.tensor(next(tokens)), len(chat.eyes.tokenizer) + 50).float()

    monkeypatch.setattr(chat, "penalty", 1.0)
    monkeypatch.setattr(chat.reader, "next", one)
    monkeypatch.setattr(chat.reader, "logits", lambda asked, device: ((one(), lambda: None) for _ in asked))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Without thoughts, with one begun in the prompt, and both with the marks among the tokens that are not shown."""
    made = {}
    for name, behind in (("plain", ""), ("thinks", ALWAYS)):
        made[name] = template(write_tiny_qwen(tmp_path_factory.mktemp(name)), behind=behind)
        made[name + ", marked"] = marked = tmp_path_factory.mktemp(name) / "marked"
        shutil.copytree(made[name], marked)
        tokenizer = transformers.AutoTokenizer.from_pretrained(marked)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
        tokenizer.save_pretrained(marked)
    return {name: load(folder) for name, folder in made.items()}


@pytest.mark.parametrize("kind, reply, room, said", [
    ("plain", "Add a dog.", 99, "Add a dog."), ("plain", "<think>Hm.</think>Add a dog.", 99, "Add a dog."),
    ("plain", "<think>Hm. Let me", 99, None), ("plain", "Add a dog.", 4, "Add "),
    ("thinks", "Hm. Let me</think>\nAdd a dog.", 99, "Add a dog."), ("thinks", "Hm. Let me", 99, None),
    ("thinks", "Hm. Let me see what is there", 8, None), ("thinks", "Hm.</think>Hm</think>Add.", 99, "Add."),
    ("thinks", "Hm.</think>", 99, None)])
@pytest.mark.parametrize("marks", ["", ", marked"])
def test_thoughts_are_no_answer(folders, monkeypatch, kind, marks, reply, room, said):
    chat = folders[kind + marks]
    chat.check()
    says(chat, monkeypatch, reply)
    answer = chat.ask([Question("What is wrong?", pictures(1)[0], max_tokens=room)])[0]
    assert (answer.text, answer.error) == ((said.strip(), "") if said else ("", ALL_THOUGHT))


@pytest.mark.parametrize("marks", ["", ", marked"])
def test_where_a_thought_is_open_no_first_token_is_an_answer(folders, marks):
    asked = [Question("Is it red?", pictures(1)[0], yes_no=True)]
    assert folders["thinks" + marks].ask(asked)[0].error == ALL_THOUGHT
    assert folders["plain" + marks].ask(asked)[0].yes is not None


@pytest.mark.parametrize("bos, prefix", [("<pad>", ""), ("<pad>", "{{ bos_token }}"), (None, "")])
def test_the_first_token_is_the_one_that_transformers_would_put_there(tmp_path, bos, prefix):
    """LLaVA 1.5's template has none, and its tokenizer puts it there; others' templates have it."""
    folder = template(write_tiny_llava(tmp_path), prefix)
    if bos:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        special = {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing", "special_tokens": special,
            "single": [{"SpecialToken": {"id": "<pad>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        change_json(folder / "tokenizer_config.json", bos_token=bos)
    chat, picture = load(folder), pictures(1)[0]
    ours = chat.eyes.inputs(Question("Is it red?", picture, "Be strict."), picture).ids[0].tolist()
    turns = [{"role": "system", "content": [{"type": "text", "text": "Be strict."}]},
             {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Is it red?"}]}]
    theirs = chat.eyes.processor.apply_chat_template(
        turns, chat_template=chat.eyes.template, tokenize=True, add_generation_prompt=True, return_dict=True,
        return_tensors="pt")["input_ids"][0].tolist()
    assert ours == theirs and ours[:2].count(0) == (1 if bos else 0)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("before", [(), (("Is it blue?", "No."),)])
def test_a_template_without_a_system_turn_is_told_with_the_first_question(tmp_path, kind, before):
    (tmp_path / "a").mkdir()
    plain, refuses = load(WRITERS[kind](tmp_path / "a")), load(template(WRITERS[kind](tmp_path / "b"), NO_SYSTEM))
    picture = pictures(1)[0]
    first = "Is it blue?" if before else "Is it red?"
    folded = Question(first if before else f"Be strict.\n\n{first}", picture)
    if before:
        folded = Question("Is it red?", picture, before=((f"Be strict.\n\n{first}", "No."),))
    asked = Question("Is it red?", picture, "Be strict.", before, yes_no=True)
    assert prompt(refuses, asked) == prompt(plain, folded) != prompt(plain, asked)
    assert refuses.ask([asked])[0].yes is not None and refuses.check() == []


@pytest.mark.parametrize("name, text, said", [
    ("tokenizer.json", "{", "tokenizer or processor cannot be loaded"),
    ("chat_template.json", "[1]", "chat_template.json: holds a list"),
    ("chat_template.json", "{", "chat_template.json: is not readable JSON"),
    ("chat_template.json", '{"chat_template": "{% broken"}', "chat template cannot be used"),
    ("chat_template.json", '{"chat_template": "{{ raise_exception(\'Only for tools\') }}"}', "Only for tools"),
    ("chat_template.json", '{"chat_template": "{{ messages[0][\'content\'] + 1 }}"}', "chat template cannot be used"),
    ("chat_template.json", '{"chat_template": "Say."}', "has no place for a picture"),
])
def test_a_broken_file_is_one_line(tmp_path, name, text, said):
    folder = write_tiny_qwen(tmp_path)
    if name == "chat_template.json":
        change_json(folder / "tokenizer_config.json", chat_template=None)
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        load(folder).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", ["tokenizer.json", "preprocessor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_half_downloaded_file_is_one_line_too(tmp_path, kind, spoil, text):
    folder = WRITERS[kind](tmp_path)
    (folder / spoil).write_text(text)
    try:
        load(folder).check()
    except UserError as error:
        assert "\n" not in str(error) and (str(folder) in str(error) or "that belong together; try " in str(error))


@pytest.mark.parametrize("message, package", [
    ("Package `num2words` is required to run SmolVLM processor. Install it with `pip install num2words`.", "num2words"),
    ("\nX requires the Torchvision library but it was not found. See\nhttps://x", "torchvision, of"),
    ("LlamaTokenizer requires the SentencePiece library but it was not found", "sentencepiece"),
    ("Please install the library foo", None)])
@pytest.mark.parametrize("chained", [False, True])
def test_a_package_that_is_lacking_is_named(tmp_path, monkeypatch, message, package, chained):
    def lacks(*_, **__):
        if not chained:
            raise ImportError(message)
        try:
            raise ImportError(message)
        except ImportError as error:
            raise ModuleNotFoundError("Could not import module 'XProcessor'. Are this object's requirements defined "
                                      "correctly?") from error

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lacks)
    with pytest.raises(UserError) as error:
        load(write_tiny_llava(tmp_path))
    cure = str(error.value).rpartition("; try ")[2]
    assert cure.startswith(f"pip install {package}") if package else cure == "to install what it names"


def test_the_doctor_knows_what_smolvlm_needs():
    from reflect_core.doctor import OPTIONAL

    assert "SmolVLM" in OPTIONAL["num2words"] and set(OPTIONAL) & set(eyes.PACKAGES) >= {"torchvision", "num2words"}


def test_a_processor_has_the_quick_tokenizer_and_looks_by_pillow(tmp_path):
    """The slow one needs sentencepiece, and a file that LLaVA 1.5's folder need not have."""
    folder = write_tiny_llava(tmp_path)
    change_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    processor = load(folder).eyes.processor
    assert processor.tokenizer.is_fast
    assert re.fullmatch("CLIPImageProcessor(Pil)?", type(processor.image_processor).__name__)


def test_a_picture_is_encoded_once_also_where_every_question_is_read_whole(tmp_path):
    """Gemma 3's picture looks ahead, so that its questions share no beginning."""
    chat = load(write_tiny_gemma(tmp_path))
    chat.check()
    assert not chat.reader.shares or int(transformers.__version__.split(".")[0]) >= 5
    chat.reader.shares, seen = False, []
    chat.model.model.vision_tower.register_forward_hook(lambda *_: seen.append(1))
    asked = [Question(f"Is it {colour}?", picture, "Be strict.", yes_no=yes_no, max_tokens=4)
             for picture in pictures(3) for colour, yes_no in (("red", True), ("blue", False), ("green", True))]
    together = chat.ask(asked)
    assert len(seen) == 3
    alone = [chat.ask([one])[0] for one in asked]
    assert len(seen) == 3 + 9
    assert [(a.text, a.yes, a.no) for a in together] == [(a.text, a.yes, a.no) for a in alone]
    assert len({a.yes for a in together[::3]}) == 3, "of three pictures"


def test_other_pixels_are_encoded_anew():
    class Tower(torch.nn.Module):
        looked = 0

        def get_image_features(self, pixels, sizes=None, layer=-1):
            self.looked += 1
            return pixels * 2 + layer

    tower, one = Tower(), torch.ones(2, 3)
    calls = [((one,), {}), ((one.clone(),), {}), ((one + 1,), {}), ((one,), {"layer": 3}),
             ((one,), {"sizes": [[1, 2]]}), ((one.double(),), {}), ((one[:1],), {})]
    with _looking_once(tower):
        for args, kwargs in calls:
            assert torch.equal(tower.get_image_features(*args, **kwargs), Tower().get_image_features(*args, **kwargs))
        assert tower.looked == len(calls) - 1
        tower.get_image_features(one)
        assert tower.looked == len(calls) - 1
    tower.get_image_features(one)
    assert tower.looked == len(calls), "and afterwards as before"
