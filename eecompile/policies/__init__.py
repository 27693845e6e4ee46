"""Exit policies: who decides to leave. Each is one small file behind `ExitPolicy`."""

from eecompile.policies.base import EXIT, HALT, OFFLOAD, ExitOutputs, ExitPolicy
from eecompile.policies.class_means import ClassMeansPolicy
from eecompile.policies.either import EitherPolicy
from eecompile.policies.halted import HaltedPolicy, SpendingLimit
from eecompile.policies.json_form import from_json, to_json
from eecompile.policies.learned_score import LearnedScorePolicy
from eecompile.policies.never import NeverPolicy
from eecompile.policies.patience import PatiencePolicy
from eecompile.policies.predicted import PredictedPolicy
from eecompile.policies.replay import Replay, replay
from eecompile.policies.split import SplitCosts, SplitPolicy
from eecompile.policies.split_bandit import UcbOptions
from eecompile.policies.split_replay import StreamReplay, replay_stream
from eecompile.policies.threshold import ThresholdPolicy

__all__ = [
    "EXIT",
    "HALT",
    "OFFLOAD",
    "ClassMeansPolicy",
    "EitherPolicy",
    "ExitOutputs",
    "ExitPolicy",
    "HaltedPolicy",
    "LearnedScorePolicy",
    "NeverPolicy",
    "PatiencePolicy",
    "PredictedPolicy",
    "Replay",
    "SpendingLimit",
    "SplitCosts",
    "SplitPolicy",
    "StreamReplay",
    "ThresholdPolicy",
    "UcbOptions",
    "from_json",
    "replay",
    "replay_stream",
    "to_json",
]
