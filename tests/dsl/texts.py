"""Random `.ee` texts: valid ones in any layout, with comments anywhere, and damaged ones."""

from __future__ import annotations

from hypothesis import strategies as st

Tokens = list[str]

#: Every construct of the language, split where spaces, line ends and comments may stand.
MODEL = [
    'source onnx "net.onnx"',
    'source torch "zoo.py:net" weights "net.pth"',
    "input image : float32 [ 1 , 3 , 32 , 32 ]",
    'input "input.1" : int64 [ ]',
    "output logits : classes ( 10 )",
    'output "495"',
    "data cifar10",
    'exit early after "layer1.8" head linear ( pool : 4 )',
    'exit middle_one after "layer2.8" head class_means ( metric : euclidean , pool : raw )',
    'exit e after "a#b" head linear comparator class_means ( pool : 4 )',
    'exit own after "x" head module ( "heads.py:Head" weights "head.pth" )',
    'exit other after "y" head onnx ( "head.onnx" )',
    "exits auto ( count : 3 .. 6 ) head conv ( channels : 16 , kernel : 3 )",
    'skip layers "layer3.[1-8]" gate recurrent ( hidden : 10 )',
    'skip channels "layer3.*.conv1" gate squeeze ( groups : 4 )',
    'skip channels "**" gate recurrent ( groups : auto , embedding : 8 )',
    'skip layers "layer2.*" gate fitted',
    'gates "net.gates.npz"',
]
DATA = [
    'fit "train.npz"',
    'calibrate "test.npz" [ .. 5000 ]',
    'test "x.npy" [ 5000 .. ] labels "y.npy"',
    "normalize mean [ 0.485 , 0.456 ] std [ 1e-1 , 2 ]",
    'keys images "x" labels "y"',
    "layout HWC",
    "pixels -1 .. 1.0",
]
POLICY = [
    "exit when confidence ( class_means ) or confidence ( max_softmax ) >= 0.8",
    "exit when patience ( count : 2 )",
    "exit when confidence ( entropy ) >= 80 %",
    "exit when predicted ( start : early , window : 8 )",
    "budget mean latency <= 2 ms",
    "budget accuracy drop <= 0.5 points",
    "deadline 4 ms",
    "deadline 4 ms safe",
    "frequency lowest_energy",
    "frequency 600 MHz",
    "exit when auto",
    "exit when learned_score",
    'offload "http://edge:8000" cost 0.5',
    'offload "http://a:8000" , "grpc://[::1]:8001" cost 1 border int8 timeout 200 ms retries 0',
    'offload "https://a:443" cost 2e-1 retries 10 timeout 1.5 s',
    "split online_ucb",
    "split online_ucb ( observations : side , unknown : impute , discount : 0.9 , weight : 2 )",
    "split fixed ( at : early )",
    "guard accuracy drop <= 1 %",
    "guard accuracy drop <= 0.5 points audit 5 %",
    "halt at budget energy <= 3 mJ",
    "halt at budget macs <= 50 %",
    "halt at budget latency <= 1 ms",
]
TARGET = [
    'board "raspberry-pi-4"',
    'cluster "big"',
    "cores 4",
    "frequencies [ 600 MHz .. 1.5 GHz , 1 GHz ]",
]


def _block(kind: str, statements: list[str]) -> st.SearchStrategy[Tokens]:
    name = st.sampled_from(["a", "net", "arm-cpu", "data", "long_name_of_a_block"])
    body = st.lists(st.sampled_from(statements), max_size=5)
    return st.builds(lambda n, b: f"{kind} {n} {{ {' '.join(b)} }}".split(" "), name, body)


_BLOCKS = st.lists(
    st.one_of(
        _block("model", MODEL),
        _block("data", DATA),
        _block("policy", POLICY),
        _block("target", TARGET),
    ),
    max_size=6,
)
_GAPS = st.sampled_from(
    [" "] * 8
    + ["\n", "\n\n", "\n \n\n", "\t", "\r\n", " # a note\n", "\n# alone\n", "#\n", "\n\n# x\n\n"]
)


@st.composite
def valid_texts(draw: st.DrawFn) -> str:
    """A text that parses, laid out in any way."""
    tokens = ["eecompile", "1"] + [token for block in draw(_BLOCKS) for token in block if token]
    gaps = draw(st.lists(_GAPS, min_size=len(tokens) + 1, max_size=len(tokens) + 1))
    last = draw(st.sampled_from(["", "\n", "# the end", "\n\n# the end"]))
    head = gaps[0] if gaps[0] != " " else ""
    return head + "".join(t + g for t, g in zip(tokens, gaps[1:], strict=True)) + last


@st.composite
def damaged_texts(draw: st.DrawFn) -> str:
    """A valid text with pieces cut out, doubled or overwritten."""
    text = draw(valid_texts())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        junk = st.one_of(
            st.text(max_size=6),
            st.sampled_from(
                ['"', "{", "}", "..", "%", "-", "1e999", "9" * 5000, "[", ":", "#", "0"]
            ),
            st.just(text[start:end] * 2),
        )
        text = text[:start] + draw(junk) + text[end:]
    return text
