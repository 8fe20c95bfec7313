"""Results on disk: exact, whole, and refused with a reason where they are something else."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.interrupting import Killed, interrupted
from vlm_lens.results import provenance, read_result, write_result
from vlm_lens.results.files import VERSION
from vlm_lens.versions import versions
from vlm_lens.whole_file import DamagedError

INF, NAN = float("inf"), float("nan")

texts = st.one_of(st.text(), st.sampled_from(["inf", "-inf", "nan", "'inf", "''nan", "'", "NaN"]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(texts, inner)),
    max_leaves=20,
)


def written(value: object) -> str:
    """A form in which NaN equals NaN, 1 differs from 1.0 and "inf" from infinity."""
    return repr(value)


@pytest.mark.full
@given(st.dictionaries(texts, values))
def test_fields_come_back_as_they_were(tmp_path_factory, fields):
    folder = tmp_path_factory.mktemp("result")
    write_result(folder, kind="some", fields=fields)
    assert written(read_result(folder, kind="some")) == written((fields, {}))


def test_what_is_not_finite_is_a_text_in_strict_json(tmp_path):
    write_result(tmp_path, kind="some", fields={"a": [INF, -INF, NAN], "b": "inf"})
    refuse = pytest.fail  # is called for Infinity and NaN, which are no JSON
    content = json.loads((tmp_path / "some.json").read_text(), parse_constant=refuse)
    assert content["fields"] == {"a": ["inf", "-inf", "nan"], "b": "'inf"}
    assert content["version"] == VERSION


def test_tuples_numpy_numbers_and_broken_texts(tmp_path):
    fields = {"a": (1, 2), "b": np.float32(0.5), "c": np.int64(3), "d": "\udcff <image> ×"}
    write_result(tmp_path, kind="some", fields=fields)
    back, _ = read_result(tmp_path, kind="some")
    assert back == {"a": [1, 2], "b": 0.5, "c": 3, "d": "\udcff <image> ×"}


def test_tensors_come_back_bit_by_bit(tmp_path):
    whole = torch.randn(4, 6)
    tensors = {
        "view": whole[:, ::2],
        "same memory": whole,
        "transposed": whole.T,
        "half": whole.to(torch.bfloat16),
        "scalar": torch.tensor(INF),
        "none": torch.empty(0, 3),
        "mask": torch.tensor([True, False]),
        "grad": torch.ones(2, requires_grad=True),
        "blocks.0.mlp.hook_post": torch.tensor([NAN, -0.0]),
    }
    write_result(tmp_path / "new" / "folder", kind="some", fields={}, tensors=tensors)
    _, back = read_result(tmp_path / "new" / "folder", kind="some")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        torch.testing.assert_close(back[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a": {"b": [1, torch.ones(1)]}}, r"got Tensor at fields\['a'\]\['b'\]\[1\]"),
        ({"a": {1: 2}}, r"as keys of fields\['a'\], got 1"),
        ({"a": {1, 2}}, "got set"),
        ({"a": torch.float32}, "got dtype"),
    ],
)
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(TypeError, match=message):
        write_result(tmp_path / "new", kind="some", fields=fields)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["", "../up", "a/b", ".hidden", "a b", "a.b"])
def test_a_kind_is_a_plain_file_name(tmp_path, kind):
    with pytest.raises(ValueError, match="kind must be"):
        write_result(tmp_path, kind=kind, fields={})


def test_a_result_replaces_its_own_kind_only(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "notes.txt").write_text("mine")
    write_result(tmp_path, kind="one", fields={"n": 1}, tensors={"a": torch.ones(2)})
    write_result(tmp_path, kind="two", fields={"n": 2})
    write_result(tmp_path, kind="one", fields={"n": 3})
    assert read_result(tmp_path, kind="one") == ({"n": 3}, {})
    assert read_result(tmp_path, kind="two") == ({"n": 2}, {})
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["model.safetensors", "notes.txt", "one.json", "two.json"]


@pytest.mark.parametrize("content", ["{}", "mine", '{"format": "other"}', "[]", "[" * 100_000])
def test_files_of_others_are_not_replaced(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(FileExistsError, match="is no result of vlm_lens"):
        write_result(tmp_path, kind="model", fields={}, tensors={"a": torch.ones(1)})
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model.json", content)]


@pytest.mark.parametrize("n", [0, 1, 5, 29, 40, 90])
def test_what_a_full_disk_has_cut_short_is_ours(tmp_path, n):
    write_result(tmp_path, kind="some", fields={"n": 1}, tensors={"a": torch.ones(1)})
    path = tmp_path / "some.json"
    path.write_bytes(path.read_bytes()[:n])
    with pytest.raises(
        DamagedError, match="To go on, delete .*some.json': it has to be made again"
    ):
        read_result(tmp_path, kind="some")
    write_result(tmp_path, kind="some", fields={"n": 2}, tensors={"a": torch.zeros(1)})
    assert read_result(tmp_path, kind="some") == ({"n": 2}, {"a": torch.zeros(1)})
    assert len([*tmp_path.iterdir()]) == 2


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="it is a file. Name a folder"):
        write_result(tmp_path / "file", kind="some", fields={})


@pytest.fixture(scope="module")
def of_version_1(tmp_path_factory):
    """A result as vlm_lens 0.1.0 wrote it."""
    folder = tmp_path_factory.mktemp("version 1")
    packed = safetensors.torch.save({"a": torch.ones(1)})
    digest = hashlib.sha256(packed).hexdigest()
    (folder / "some.json").write_text(content(version=1, fields={"n": 1}, sha256=digest))
    (folder / "some.safetensors").write_bytes(packed)
    return folder


def test_results_of_version_1_are_refused_and_replaced(of_version_1, tmp_path):
    shutil.copytree(of_version_1, tmp_path, dirs_exist_ok=True)
    (tmp_path / f".some.json.{'0' * 32}.tmp").write_text("never finished")
    with pytest.raises(DamagedError, match="an earlier vlm_lens wrote it.*has to be made again"):
        read_result(tmp_path, kind="some")
    write_result(tmp_path, kind="some", fields={"n": 2})
    assert read_result(tmp_path, kind="some") == ({"n": 2}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["some.json"]


STATES = {"nothing": None, "a result": {"a": torch.ones(1)}, "one without tensors": {}}


def whole(folder):
    """What is in a folder: a result, none, or one of an earlier version, untouched."""
    if not (folder / "some.json").exists():
        return None
    with suppress(DamagedError):
        return read_result(folder, kind="some")
    return (folder / "some.json").read_text(), (folder / "some.safetensors").read_bytes()


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("before", [*STATES, "version 1"])
@pytest.mark.parametrize("after", [{"a": torch.zeros(1)}, {}], ids=["tensors", "none"])
def test_whatever_ends_a_write_leaves_the_old_result_or_the_new(
    of_version_1, tmp_path, monkeypatch, before, after, locks
):
    """Each file operation fails in turn, as on a full disk, or is where the program is killed."""
    if not locks:
        monkeypatch.setattr("vlm_lens.whole_file.fcntl", None)
    new = ({"n": 2}, after)
    for killed in (False, True):
        for number in range(100):
            folder = tmp_path / f"{killed} {number}"
            if before == "version 1":
                shutil.copytree(of_version_1, folder)
            elif before != "nothing":
                write_result(folder, kind="some", fields={"n": 1}, tensors=STATES[before])
            old = whole(folder)
            ending = suppress(OSError, Killed)
            with ending, interrupted(number, killed=killed) as failed:
                write_result(folder, kind="some", fields={"n": 2}, tensors=after)
            assert whole(folder) in (old, new)
            write_result(folder, kind="some", fields={"n": 2}, tensors=after)
            assert read_result(folder, kind="some") == new
            if locks:
                left = {path.name for path in folder.iterdir()}
                assert len(left - {"some.safetensors"}) == 1 + bool(after), left
            if not failed:
                break
        assert number > 3


def test_a_full_disk_is_an_error_with_the_path_asked_for(tmp_path):
    write_result(tmp_path, kind="some", fields={"n": 1}, tensors={"a": torch.ones(1)})
    named = r"No space left.*some\.[0-9a-f]*\.safetensors'$"
    with pytest.raises(OSError, match=named) as caught, interrupted(0):
        write_result(tmp_path, kind="some", fields={"n": 2}, tensors={"a": torch.zeros(1)})
    assert caught.value.errno == errno.ENOSPC


def test_where_there_are_no_locks_nothing_piles_up(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_lens.whole_file.fcntl", None)
    (tmp_path / f"some.{'0' * 16}.safetensors").write_bytes(b"somebody else is writing")
    for n in range(3):
        write_result(tmp_path, kind="some", fields={"n": n}, tensors={"a": torch.tensor(n)})
    assert read_result(tmp_path, kind="some") == ({"n": 2}, {"a": torch.tensor(2)})
    assert len([*tmp_path.iterdir()]) == 3


def test_two_who_write_at_once_leave_one_whole_result(tmp_path):
    def write(n):
        for _ in range(20):
            write_result(tmp_path, kind="some", fields={"n": n}, tensors={"a": torch.tensor(n)})
            fields, tensors = read_result(tmp_path, kind="some")
            assert tensors["a"] == fields["n"]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len([*tmp_path.iterdir()]) == 2


def test_a_missing_result_says_what_is_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="expected a file 'some.json'.*there: none"):
        read_result(tmp_path, kind="some")
    write_result(tmp_path, kind="other", fields={})
    with pytest.raises(FileNotFoundError, match="results there: other"):
        read_result(tmp_path, kind="some")
    with pytest.raises(FileNotFoundError):
        read_result(tmp_path / "nowhere", kind="some")


def content(**changes: object) -> str:
    whole = {"format": "vlm_lens.result", "version": VERSION, "kind": "some", "fields": {}}
    return json.dumps({**whole, "tensors": None} | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is damaged, or no result"),
        ("\udcff\udc80", "it is damaged, or no result"),
        (content()[:-9], "it is damaged, or no result"),
        ("[]", "no result of vlm_lens"),
        (content(format="vlm_lens.NeuronSet"), "no result of vlm_lens"),
        (content(version=4), "format version 4, and this is 3: update vlm_lens"),
        (content(version="1"), "it is damaged"),
        (content(version=2), "an earlier vlm_lens wrote it, in format version 2.*delete"),
        (content(kind="scores"), "it says that it is of kind 'scores', damaged or renamed"),
        (content(fields=[]), "it is damaged"),
        (content(version=1, sha256="3"), "an earlier vlm_lens wrote it, in format version 1"),
        (content(tensors=3), "it is damaged"),
        (content(tensors={"file": "some.safetensors"}), "it is damaged"),
        (content(tensors={"file": 3, "sha256": ""}), "it is damaged"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, text, message):
    path = tmp_path / "some.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        read_result(tmp_path, kind="some")
    assert str(path) in str(caught.value)


def test_tensors_must_belong_to_the_fields(tmp_path):
    write_result(tmp_path, kind="some", fields={}, tensors={"a": torch.ones(3)})
    [path] = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\1")
    advice = "To go on, delete '.*some.json'"
    with pytest.raises(DamagedError, match=f"damaged, or from another result.*{advice}"):
        read_result(tmp_path, kind="some")
    path.unlink()
    with pytest.raises(DamagedError, match=f"it is missing: keep it.*{advice}"):
        read_result(tmp_path, kind="some")


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("a pickle was read",)


def test_pickles_are_never_read(tmp_path):
    pickled = pickle.dumps(Bomb())
    (tmp_path / "some.safetensors").write_bytes(pickled)
    digest = hashlib.sha256(pickled).hexdigest()
    stored = {"file": "some.safetensors", "sha256": digest}
    (tmp_path / "some.json").write_text(content(tensors=stored))
    with pytest.raises(ValueError, match="it is no safetensors file"):
        read_result(tmp_path, kind="some")
    (tmp_path / "some.json").write_bytes(pickled)
    with pytest.raises(ValueError, match="no result of vlm_lens"):
        read_result(tmp_path, kind="some")


def test_provenance_names_model_versions_and_date(shapes, tmp_path):
    found = provenance(shapes)
    assert found["model"] == "shapes-llava"
    assert found["revision"] is None
    assert found["device"] == "cpu"
    assert found["versions"] == versions()
    assert datetime.fromisoformat(found["date"]).tzinfo is not None
    write_result(tmp_path, kind="some", fields=found)
    assert read_result(tmp_path, kind="some") == (found, {})


def test_provenance_of_any_kind_of_model(llava):
    hf_model = llava.model.hf_model
    bridge = SimpleNamespace(original_model=hf_model)
    found = [provenance(model) for model in (llava.model, hf_model, bridge)]
    assert all(each["class"] == type(hf_model).__name__ for each in found)
    assert all(each["dtype"] == "float32" for each in found)


def test_versions_name_python_and_every_package():
    assert versions().keys() == {
        "vlm-lens",
        "torch",
        "transformers",
        "transformer-lens",
        "Python",
    }
    assert versions()["torch"] == torch.__version__
