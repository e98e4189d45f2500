"""What is measured: tensors or strings in, one number per sequence out. Only a report averages."""

from mmedit.metrics.locality import (
    LocalityScores,
    Ranked,
    exact,
    kl,
    locality,
    locality_to,
    ranked,
    top1,
    topk_ordered,
    topk_set,
)
from mmedit.metrics.multiclass_log_probs import (
    NOT_SCORED,
    MulticlassLogProbs,
    answer_log_prob,
    answer_nll,
    exact_match,
    multiclass_log_probs,
    require_tokens,
    token_accuracy,
)

__all__ = [
    "NOT_SCORED",
    "LocalityScores",
    "MulticlassLogProbs",
    "Ranked",
    "answer_log_prob",
    "answer_nll",
    "exact",
    "exact_match",
    "kl",
    "locality",
    "locality_to",
    "multiclass_log_probs",
    "ranked",
    "require_tokens",
    "token_accuracy",
    "top1",
    "topk_ordered",
    "topk_set",
]
