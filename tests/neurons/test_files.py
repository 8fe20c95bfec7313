"""Neuron sets as files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lens.neurons import Neuron, NeuronSet

POST0 = "blocks.0.mlp.hook_post"
NAMES = [POST0, "vision_encoder.blocks.2.mlp.hook_post", "projector.mlp.hook_post"]
SIZES = dict.fromkeys(NAMES, 40)

neurons_lists = st.lists(st.builds(Neuron, st.sampled_from(NAMES), st.integers(0, 12)))


@given(neurons_lists, st.booleans())
def test_files_round_trip_exactly(tmp_path_factory, listed, with_sizes):
    path = tmp_path_factory.mktemp("sets") / "neurons.json"
    neurons = NeuronSet(listed, sizes=SIZES if with_sizes else None)
    neurons.save(path)
    back = NeuronSet.load(path)
    assert list(back) == list(neurons)
    assert back.sizes == neurons.sizes


def test_a_file_is_readable_and_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "neurons.json"
    NeuronSet.from_indices({POST0: [3]}).save(str(path))
    assert f'"{POST0}[3]"' in [line.strip() for line in path.read_text().splitlines()]
    assert json.loads(path.read_text())["version"] == 1

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        NeuronSet.from_indices({POST0: [4]}).save(path)
    assert list(NeuronSet.load(path)) == [Neuron(POST0, 3)]
    assert [file.name for file in tmp_path.iterdir()] == ["neurons.json"]


def content(**changes: object) -> dict[str, object]:
    whole = {"format": "vlm_lens.NeuronSet", "version": 1, "sizes": {}, "neurons": ["a.b[1]"]}
    return whole | changes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("\udcff", "no text in UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps(content(neurons=[f"a.b[{'9' * 5000}]"])), "a number of 5,000 digits"),
        (json.dumps(content(sizes={"a.b": 1})).replace("1}", "9" * 5000 + "}"), "too many digits"),
        ("[]", "expected an object of format 'vlm_lens.NeuronSet'"),
        (json.dumps(content(format="other")), "expected an object of format"),
        (json.dumps(content(version=2)), "and version 1"),
        ("{}", "expected an object of format"),
        (json.dumps(content(neurons="a.b[1]")), "expected neurons to be a list"),
        (json.dumps(content(neurons=["a.b"])), "cannot read 'a.b' as a neuron"),
        (json.dumps(content(neurons=[["a.b", 1]])), "expected neurons to be a list of strings"),
        (json.dumps(content(sizes=[])), "sizes to map hook names to integers"),
        (json.dumps(content(sizes={"a.b": 2.5})), "sizes to map hook names to integers"),
        (json.dumps(content(sizes={"a.b": 1})), r"a\.b\[1\] does not exist"),
    ],
)
def test_load_refuses_other_files(tmp_path, text, message):
    path = tmp_path / "neurons.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        NeuronSet.load(path)
    assert str(path) in str(caught.value)
    assert "Write it with NeuronSet.save" in str(caught.value)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no '.*none.json'"):
        NeuronSet.load(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        NeuronSet.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere/a.json'$"):
        NeuronSet().save(tmp_path / "nowhere" / "a.json")
