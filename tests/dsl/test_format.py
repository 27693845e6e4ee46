"""The formatter: one layout, nothing lost, nothing changed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from eecompile.diagnostics import CompileErrors, Source
from eecompile.dsl.format import format_text
from eecompile.dsl.parser import parse, parse_tree
from eecompile.spec import plain
from tests.dsl.texts import valid_texts


def comments(text: str) -> list[str]:
    found = re.findall(r'"[^"\r\n]*"|#[^\n]*', text)
    return [comment.rstrip() for comment in found if comment.startswith("#")]


def tokens(text: str) -> list[str]:
    return [leaf.text for leaf in parse_tree(Source("", text)).tokens()]


@given(valid_texts())
@settings(max_examples=150, deadline=None)
def test_formatting_changes_only_the_layout(text: str) -> None:
    formatted = format_text(text)
    assert format_text(formatted) == formatted
    assert tokens(formatted) == tokens(text)
    assert comments(formatted) == comments(text)
    before, after = (plain(parse(Source("", t))[0]) for t in (text, formatted))
    assert before == after
    assert not re.search(r"[ \t]$", formatted, re.MULTILINE)
    assert "\n\n\n" not in formatted


UNTIDY = """\
# our network
eecompile 1
model net{source onnx "net.onnx" # the file
input image:float32[1,3,32,32]# fixed
exit early after "layer1.8" head linear(pool:4) comparator class_means(pool:raw)
# the late one
exit late after "layer3" head # pooled a little
  bag_of_features(codewords:64,window:2)


skip layers "layer3.[1-8]" gate recurrent(hidden:10) skip channels "c" gate squeeze
gates "net.gates.npz"# trained
}
data d{calibrate "test.npz"[..5000] fit "train.npz" normalize mean[0.5]std[0.2]}
policy fast{exit when confidence(entropy)>=80% budget mean latency<=2ms}
policy thrifty{halt at budget energy<=3mJ}
policy best{exit when auto budget mean macs<=9% guard accuracy drop<=1%audit 5%}
policy split{exit when confidence(max_softmax)>=0.8 # unsure ones
offload "http://edge:8000","grpc://[::1]:8001"cost 0.5 border int8 # half
timeout 2s retries 1 split online_ucb(observations:side)}
policy both { exit when patience(count:2) # agreeing
budget mean macs <= 70 %}
target host{}
"""

TIDY = """\
# our network
eecompile 1

model net {
    source onnx "net.onnx"               # the file
    input  image: float32[1, 3, 32, 32]  # fixed
    exit early after "layer1.8"   head linear(pool: 4)   comparator class_means(pool: raw)
    # the late one
    # pooled a little
    exit late  after "layer3"     head bag_of_features(codewords: 64, window: 2)

    skip layers   "layer3.[1-8]"   gate recurrent(hidden: 10)
    skip channels "c"              gate squeeze
    gates "net.gates.npz"  # trained
}

data d {
    calibrate "test.npz"[..5000]
    fit       "train.npz"
    normalize mean [0.5] std [0.2]
}

policy fast    { exit when confidence(entropy) >= 80 %   budget mean latency <= 2 ms }
policy thrifty { halt at budget energy <= 3 mJ }
policy best    { exit when auto   budget mean macs <= 9 %   guard accuracy drop <= 1 % audit 5 % }

policy split {
    exit when confidence(max_softmax) >= 0.8  # unsure ones
    # half
    offload   "http://edge:8000", "grpc://[::1]:8001" cost 0.5 border int8 timeout 2 s retries 1
    split     online_ucb(observations: side)
}

policy both {
    exit when patience(count: 2)  # agreeing
    budget    mean macs <= 70 %
}

target host {}
"""


def test_the_canonical_layout() -> None:
    assert format_text(UNTIDY) == TIDY


def test_a_long_policy_takes_several_lines() -> None:
    rule = " or ".join(["confidence(max_softmax) >= 0.8"] * 4)
    formatted = format_text(f"eecompile 1 policy p {{ exit when {rule} }}")
    assert formatted == f"eecompile 1\n\npolicy p {{\n    exit when {rule}\n}}\n"


def test_a_text_with_errors_is_refused_with_its_path() -> None:
    with pytest.raises(CompileErrors) as caught:
        format_text("eecompile 1 modle", path="net.ee")
    assert caught.value.diagnostics[0].file == "net.ee"
