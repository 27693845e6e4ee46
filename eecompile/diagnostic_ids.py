"""The ids a diagnostic may have: what each means, why it is told, and an example.

An id reads as what is wrong ("unknown-point"). Every id has an entry here and a test case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DIAGNOSTICS", "LANGUAGE_IDS", "DiagnosticInfo"]


@dataclass(frozen=True)
class DiagnosticInfo:
    """What a diagnostic id stands for.

    Attributes:
        what: what was found.
        why: why it is an error, or what would go wrong.
        example: something that brings it about.
    """

    what: str
    why: str
    example: str


_LANGUAGE = {
    "syntax-error": DiagnosticInfo(
        "The text does not follow the grammar.",
        "Nothing after the first such place can be trusted, so only the first is told.",
        'exit early aftr "layer1"',
    ),
    "unreadable-file": DiagnosticInfo(
        "The `.ee` file cannot be read, or is no UTF-8 text.",
        "A path is mistyped, or a model was given where its description belongs.",
        "eecompile check resnet56.onnx",
    ),
    "unsupported-version": DiagnosticInfo(
        "The file asks for a language version this compiler does not know.",
        "It may use words that mean something else, or nothing, here.",
        "eecompile 2",
    ),
    "bad-number": DiagnosticInfo(
        "A number is not of the kind, or not in the range, needed here.",
        "Counts and shapes are whole and positive; thresholds are probabilities.",
        "cores 0",
    ),
    "bad-range": DiagnosticInfo(
        "A range or a slice ends before it starts.",
        "It holds nothing.",
        'calibrate "test.npz"[5000..10]',
    ),
    "missing-unit": DiagnosticInfo(
        "A physical quantity has no unit.",
        "Units are mandatory: 2 could be seconds or milliseconds.",
        "deadline 4",
    ),
    "unknown-unit": DiagnosticInfo(
        "A unit is unknown, or is one of another quantity.",
        "Latency is given in s, ms or us; energy in J, mJ or uJ; and so on.",
        "budget mean latency <= 2 mJ",
    ),
    "unknown-dtype": DiagnosticInfo(
        "The element type of an input does not exist, or border tensors cannot travel as it.",
        "Element types have numpy's names.",
        "input x: float[1, 3]",
    ),
    "duplicate-name": DiagnosticInfo(
        "Two things of one kind have the same name.",
        "Nothing else could say which of them is meant.",
        'exit early after "a" ...   exit early after "b" ...',
    ),
    "duplicate-setting": DiagnosticInfo(
        "A setting that may be given once is given twice.",
        "One of them would silently be ignored.",
        "policy p { deadline 4 ms   deadline 5 ms }",
    ),
    "missing-setting": DiagnosticInfo(
        "Something that has to be said is not said.",
        "There is no default that would be right.",
        "a model without `source`",
    ),
    "unknown-head": DiagnosticInfo(
        "There is no exit head of this kind.",
        "Only the listed kinds can be built.",
        "head liner(pool: 4)",
    ),
    "unknown-gate": DiagnosticInfo(
        "There is no gate of this kind.",
        "Only the listed kinds are known.",
        "gate recurent(hidden: 10)",
    ),
    "untrained-gates": DiagnosticInfo(
        "Gates have to be trained, and no file of trained gates is there.",
        "`eecompile train` writes it; until then the file can be checked, and not built.",
        'skip layers ... gate recurrent, without `gates "net.gates.npz"`',
    ),
    "unknown-rule": DiagnosticInfo(
        "There is no exit rule, split rule or frequency rule of this name.",
        "Only the listed rules are known.",
        "exit when confidant(entropy)",
    ),
    "bad-endpoint": DiagnosticInfo(
        "An endpoint is no protocol, host and port.",
        "Samples are sent to what is written, and nowhere else: no part of it is guessed.",
        'offload "edge:8000" cost 0.5',
    ),
    "unknown-measure": DiagnosticInfo(
        "There is no measure of confidence of this name.",
        "Only the listed measures are known.",
        "exit when confidence(softmax)",
    ),
    "unknown-budget": DiagnosticInfo(
        "A budget limits something that cannot be limited.",
        "Only the listed quantities are recorded and can be promised.",
        "budget mean memory <= 2 ms",
    ),
    "unknown-option": DiagnosticInfo(
        "A head, gate or rule has no such option.",
        "It would silently have no effect.",
        "head linear(pol: 4)",
    ),
    "bad-option": DiagnosticInfo(
        "An option's value is of the wrong type, or out of range.",
        "The head, gate or rule could not be built with it.",
        "head linear(pool: big)",
    ),
    "unknown-point": DiagnosticInfo(
        "The graph has no point of this name, or none that the pattern matches.",
        "Nothing could be inserted there.",
        'exit early after "layr1.8" ...',
    ),
    "ambiguous-point": DiagnosticInfo(
        "The pattern of an exit matches several points.",
        "An exit stands at one point.",
        'exit early after "layer1.*" ...',
    ),
    "unreachable-output": DiagnosticInfo(
        "The network's output does not depend on this point.",
        "Stopping there would save nothing: the value is needed by nothing else.",
        'exit early after "auxiliary.0" ...',
    ),
    "nothing-to-skip": DiagnosticInfo(
        "The point is the network's output itself.",
        "An exit there would save nothing.",
        'exit early after "fc" ...',
    ),
    "duplicate-point": DiagnosticInfo(
        "Two exits stand at the same point, or two gates decide about the same place.",
        "The second exit can never be taken, and which of the gates decides is not said.",
        'exit a after "layer1" ...   exit b after "layer1" ...',
    ),
    "unknown-input": DiagnosticInfo(
        "The network has no input of this name, or another number of inputs.",
        "Inputs are matched by name, or by position where all names differ.",
        "input imag: float32[1, 3, 32, 32]",
    ),
    "wrong-shape": DiagnosticInfo(
        "The shape given for an input cannot be the graph's.",
        "Only dynamic dimensions may be chosen.",
        "input image: float32[1, 1, 28, 28]",
    ),
    "wrong-dtype": DiagnosticInfo(
        "The element type given for an input is not the graph's.",
        "The network would read other numbers than were written.",
        "input image: float64[1, 3, 32, 32]",
    ),
    "missing-input": DiagnosticInfo(
        "A dimension of an input is dynamic and nothing fixes it.",
        "Compiled code has static shapes.",
        'an ONNX file with "batch", and no `input` statement',
    ),
    "unknown-output": DiagnosticInfo(
        "The network has no output of this name.",
        "The final exit's logits have to be known.",
        "output logts: classes(10)",
    ),
    "wrong-classes": DiagnosticInfo(
        "The output does not hold this many classes.",
        "Exit heads would answer with other classes than the network.",
        "output logits: classes(100)",
    ),
    "missing-file": DiagnosticInfo(
        "A file that is named does not exist.",
        "Paths are relative to the `.ee` file.",
        'source onnx "resnet65.onnx"',
    ),
    "unknown-exit": DiagnosticInfo(
        "A policy names an exit the model does not have.",
        "It could never be taken.",
        "predicted(start: erly)",
    ),
    "no-exits": DiagnosticInfo(
        "A policy decides or halts, but the model has no exits.",
        "There is nothing to decide, or nothing to answer with.",
        "policy p { exit when confidence(entropy) }",
    ),
    "no-class-means": DiagnosticInfo(
        "A rule asks for class means, and no exit has them.",
        "Neither a head nor a comparator gives the distances the rule compares.",
        "exit when confidence(class_means), with linear heads only",
    ),
    "cannot-combine": DiagnosticInfo(
        "A rule or a statement stands beside another that it cannot be joined with.",
        "A forecast saves the heads on its way; another rule would have to run them all.",
        "exit when predicted or confidence(entropy)",
    ),
    "nothing-to-fit": DiagnosticInfo(
        "A policy has a budget or a guard, and every threshold of its rule is given.",
        "Nothing is left to choose so that the budget is met, or to tighten while it runs.",
        "exit when confidence(entropy) >= 0.8   budget mean macs <= 70 %",
    ),
    "unknown-data": DiagnosticInfo(
        "A model names a data set the file does not describe.",
        "Nothing could be fitted.",
        "data cifra10",
    ),
    "unknown-format": DiagnosticInfo(
        "A data file is of no known format.",
        "Data come as .npz, as .npy with labels, or from a Python callable.",
        'fit "train.csv"',
    ),
    "missing-data": DiagnosticInfo(
        "Something has to be fitted, and no data is given for it.",
        "Heads are fitted on `fit`, thresholds and budgets on `calibrate`.",
        "a `linear` head and no `data` block",
    ),
    "wrong-normalization": DiagnosticInfo(
        "The lists of `normalize` do not fit each other or the input's channels.",
        "Each channel has one mean and one standard deviation above zero.",
        "normalize mean [0.5] std [0.2, 0.2, 0.2]",
    ),
    "unknown-target": DiagnosticInfo(
        "There is no such target.",
        "`eecompile targets` lists them.",
        "target arm-cpus { }",
    ),
    "more-cores": DiagnosticInfo(
        "A target names more cores than this machine, or any cluster of its board, has.",
        "Kernels are chosen for those there are, and figures are of them.",
        "target host { cores 64 } on a machine with 2",
    ),
    "unknown-setting": DiagnosticInfo(
        "The key path given with `--set` leads nowhere.",
        "The value would silently be ignored.",
        "--set model.exit.erly.head.pool=2",
    ),
    "not-supported-yet": DiagnosticInfo(
        "The language has this, this version of the compiler cannot build it.",
        "Leaving it out silently would build something else than was asked for.",
        "halt at budget latency <= 1 ms   guard accuracy drop <= 1 %",
    ),
}

_BUILD = {
    "unreadable-model": DiagnosticInfo(
        "A model cannot be read.",
        "It is truncated, damaged, or of another format.",
        "a truncated ONNX file",
    ),
    "unreadable-weights": DiagnosticInfo(
        "A weights file holds no weights, or those of another network.",
        "Code in a weights file is never run, so only plain tensors are read.",
        "a pickled module, or a state dict whose keys do not match",
    ),
    "unsupported-operator": DiagnosticInfo(
        "The network uses an operator that cannot be compiled.",
        "Every operator must be understood exactly; none is approximated.",
        "a custom-domain `Quant` node",
    ),
    "not-skippable": DiagnosticInfo(
        "What a gate is to leave out cannot be left out.",
        "What follows must still have what it reads: the block's input as it is, or zeros.",
        'skip layers "layer2.0" gate recurrent, where layer2.0 halves the picture',
    ),
    "bad-head": DiagnosticInfo(
        "An exit head does not fit its point, or a user's own head cannot be built.",
        "Its input must have the point's shape, its output one score per class.",
        "pool: 4 on a map of 3 x 3",
    ),
    "bad-data": DiagnosticInfo(
        "A data set cannot be used: a key is missing, shapes differ, values are not finite.",
        "Fitting on it would give nonsense, or fail half-way.",
        "images with NaN",
    ),
    "bad-labels": DiagnosticInfo(
        "Labels are no class numbers of this network.",
        "Each label is a whole number from 0 to classes - 1.",
        "labels 1 to 10 for a network with 10 classes",
    ),
    "too-few-samples": DiagnosticInfo(
        "There are too few samples to fit what is asked.",
        "Each class has to be seen by a head, and a threshold needs a tail.",
        "three images for ten classes",
    ),
    "one-class": DiagnosticInfo(
        "All calibration samples are of one class.",
        "What is fitted on them is right about that class and says nothing of the others.",
        "labels that are all 0",
    ),
    "infeasible-budget": DiagnosticInfo(
        "No setting of the policy meets the budget.",
        "Even the cheapest setting costs more, or even the best is less accurate.",
        "budget mean macs <= 1 %",
    ),
    "unknown-frequency": DiagnosticInfo(
        "The board has no such clock.",
        "A clock that cannot be set has no cost; the nearest ones are named.",
        "target raspberry-pi-4 { frequencies [2 GHz] }",
    ),
    "impossible-deadline": DiagnosticInfo(
        "No clock of the board is fast enough for the deadline.",
        "Every answer would be late, or every one that is not an early exit's.",
        "deadline 1 ms, for a network that takes 4 ms at the highest clock",
    ),
    "short-deadline": DiagnosticInfo(
        "The deadline leaves no time for the whole network after an exit has looked in vain.",
        "Hard inputs are late, or answered by an exit that the policy would not have taken.",
        "deadline 4 ms, for a network that takes 4 ms at the highest clock without its exits",
    ),
    "needless-halt": DiagnosticInfo(
        "A policy halts at a budget that no sample can spend.",
        "Nothing would ever be stopped: most likely another number or unit is meant.",
        "halt at budget latency <= 1 s, for a network that takes 4 ms",
    ),
    "unknown-costs": DiagnosticInfo(
        "The costs that clocks are chosen by, or that a halt needs, are not known.",
        "What no source gives is not guessed.",
        "frequency lowest_energy, for a board without voltages",
    ),
    "not-equivalent": DiagnosticInfo(
        "With decisions off, the compiled network's output is not the source network's.",
        "An artifact that computes something else is never written.",
        "an operator compiled wrongly",
    ),
    "bad-artifact": DiagnosticInfo(
        "An artifact is incomplete, changed, or no artifact at all.",
        "Machine code is loaded only when every member has the hash the manifest names.",
        "an edited weights.bin",
    ),
    "wrong-artifact-version": DiagnosticInfo(
        "An artifact has a format this runtime does not read.",
        "The error names the version found and the versions supported.",
        "format 3, runtime supports 1",
    ),
    "untrusted-artifact": DiagnosticInfo(
        "An artifact is not signed by any of the trusted keys.",
        "Its code would run with the rights of who loads it, so nothing more of it is read.",
        "an artifact that was built again and not signed again",
    ),
    "bad-key": DiagnosticInfo(
        "A file holds no key that can sign artifacts, or check who signed them.",
        "Without the key nothing is signed, and nothing is taken for signed.",
        "a private key where the public one is asked for",
    ),
    "wrong-machine": DiagnosticInfo(
        "An artifact was built for another kind of machine.",
        "Its machine code cannot run here.",
        "an arm-cpu artifact on x86-64",
    ),
    "wrong-results": DiagnosticInfo(
        "A board computes other numbers than the artifact's test vectors.",
        "What is wrong there is not worth measuring.",
        "a board whose processor or memory is faulty",
    ),
    "endpoint-not-allowed": DiagnosticInfo(
        "Samples should go to a server that the `.ee` file does not name.",
        "They may be private: only who wrote the file says who sees them.",
        'load(..., endpoint="http://elsewhere:8000")',
    ),
    "wrong-server": DiagnosticInfo(
        "A server has another model than the one that finishes the artifact's samples.",
        "Its answers would look right, and be those of another network.",
        "a server that still has the models of last week's build",
    ),
    "untrainable": DiagnosticInfo(
        "The file has nothing that `eecompile train` could train, or its network cannot be.",
        "Gradients need a network of torch that takes batches, and gates that have parameters.",
        "eecompile train resnet56.ee, whose source is an ONNX file",
    ),
    "collapsed-accuracy": DiagnosticInfo(
        "A policy is right about held-out samples no more often than naming one class always.",
        "It keeps its budget by answers that are worth nothing.",
        "budget mean macs <= 40 % of gates that may leave out the whole network",
    ),
    "training-diverged": DiagnosticInfo(
        "Training was stopped: a loss is not finite, or accuracy has collapsed and stays so.",
        "Further steps would not bring it back; the last good state is kept in a file.",
        "eecompile train net.ee --rate 10",
    ),
    "small-batch": DiagnosticInfo(
        "Batch normalisation is tuned by the statistics of batches of a few samples.",
        "They differ so much from batch to batch that training learns little else.",
        "eecompile train resnet56.ee --tune-backbone --batch 8",
    ),
    "bad-checkpoint": DiagnosticInfo(
        "The state of an earlier training run is damaged, or that run was another one.",
        "Going on from it would give gates that no run with these options gives.",
        "eecompile train net.ee --steps 2000 after a run of 1000 steps was stopped",
    ),
    "bad-state": DiagnosticInfo(
        "A file of what a session has learned is another policy's or artifact's, or damaged.",
        "Going on from it would mean decisions by what was learned of something else.",
        "eecompile run out/ --state last-weeks-build.json",
    ),
    "bad-gates": DiagnosticInfo(
        "The file of trained gates is missing, damaged, or no such file.",
        "What gates decide would be unknown.",
        'gates "net.gates.npz", of which the end is missing',
    ),
    "wrong-gates": DiagnosticInfo(
        "The file holds gates for other blocks, or of other kinds or shapes, than the model has.",
        "Gates decide well only where they were trained.",
        "a block more in `skip layers` than when `eecompile train` ran",
    ),
    "bad-tuning": DiagnosticInfo(
        "A file of measured kernels is not what `build --tune` writes.",
        "What it means would be guessed; leaving it out would build other code than on the desk.",
        "resnet56.tuned.json after a merge with conflicts",
    ),
    "stale-tuning": DiagnosticInfo(
        "Measured choices of kernels do not fit this machine, or this version of the compiler.",
        "The code is right all the same, and perhaps slower than it could be.",
        "a file measured on another CPU",
    ),
    "bad-board": DiagnosticInfo(
        "A board file or a device tree is wrong, or contradicts itself.",
        "What is modelled on wrong clocks, voltages or powers would be wrong and look right.",
        "states = { value = [[1_500_000, 0.88]], ... }: kHz where Hz belong",
    ),
    "bad-argument": DiagnosticInfo(
        "A command line argument or an argument of a call is wrong.",
        "It cannot be used as given.",
        "--policy fats",
    ),
    "cannot-write": DiagnosticInfo(
        "A result cannot be written.",
        "The disk is full or the folder is not writable; what was there is untouched.",
        "-o /read-only/out",
    ),
}

#: id -> what it means. Ids of the language first, then those of building and running.
DIAGNOSTICS: Mapping[str, DiagnosticInfo] = MappingProxyType({**_LANGUAGE, **_BUILD})

#: The ids `eecompile.dsl` raises.
LANGUAGE_IDS = frozenset(_LANGUAGE)
