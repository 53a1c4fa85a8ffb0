"""One-line definitions, with units, of every metric that a report prints.

Names are patterns because some contain a number or the name of a label. The text table, the JSON
and the report page all use this table.
"""

import re

DEFINITIONS: dict[str, str] = {
    # Likelihood
    "rec": "reconstruction loss E_q[-log p(x|z)], summed over tokens, end included; baseline: z of "
    "another sentence (nats/sentence)",
    "neg_elbo": "rec + kl, an upper bound on -log p(x) (nats/sentence)",
    "nll_<K>": "importance-weighted upper bound on -log p(x) from K posterior draws; the largest K "
    "is evals.samples (nats/sentence)",
    "ess": "effective sample size of the importance weights, at most K; below 5 the bound is loose",
    "unknown_tokens": "share of the decoder's tokens that its tokenizer does not know (%)",
    "unknown_sentences": "share of the sentences with at least one unknown decoder token (%)",
    "ppl_w": "perplexity per whitespace word, end of sentence counted, from nll_K; compares across "
    "tokenizers",
    "ppl_t": "perplexity per token of the decoder's tokenizer, end counted, from nll_K",
    "bpc": "bits per character, line end counted, from nll_K; compares across tokenizers",
    # Use of the latent
    "kl": "mean KL(q(z|x) || p(z)) (nats/sentence)",
    "mi": "mutual information of sentence and latent, E[log q(z|x) - log q(z)] at the same draws, "
    "q(z) the mean over N sentences; at most ln N (nats)",
    "marginal_gap": "KL(q(z) || p(z)) = kl - mi: how far posteriors together are from the prior; "
    "none if every source has its own prior (nats)",
    "au_<T>": "active units: dimensions whose posterior mean has a variance over sentences above T",
    "rec_gap": "rec with another sentence's z minus rec; near 0 the decoder ignores z "
    "(nats/sentence)",
    "collapsed": "yes if no unit is active, or kl, mi or rec_gap is within 0.1 nat or two standard "
    "errors of a posterior equal to the prior",
    # Reconstruction from the posterior mean
    "token_accuracy": "share of tokens ranked first given all earlier ones and the posterior mean "
    "(%)",
    "exact_match": "share of sentences reconstructed letter by letter, greedily from the posterior "
    "mean (%)",
    "exact_match_unseen": "exact_match of sentences that are not in the training set (%)",
    "exact_match_ceiling": "share of sentences that the decoder's tokenizer itself gives back "
    "letter by letter, the most that exact_match can reach (%)",
    "exact_match_reachable": "exact_match among the sentences that the tokenizer gives back (%)",
    "bleu": "corpus BLEU of reconstructions against the sentences (0-100)",
    # Samples from the prior
    "samples": "number of sentences decoded from the prior, evals.generate",
    "distinct_lines": "number of different sentences among the samples",
    "duplicates": "share of samples that occur more than once (%)",
    "bleu_test": "mean BLEU-4 of samples, all test sentences as references; higher is closer "
    "(0-100)",
    "bleu_test_5": "the same up to 5-grams (0-100)",
    "self_bleu": "mean BLEU-4 of each sample against the others; lower is more diverse (0-100)",
    "self_bleu_5": "the same up to 5-grams (0-100)",
    "jaccard": "shared bigrams over all bigrams of two samples, mean over pairs of 200; lower is "
    "more diverse (0-1)",
    "dist_<N>": "distinct N-grams over all N-grams of the samples; higher is more diverse (0-1)",
    "memorised": "share of the samples' 4-grams that occur in the training set (%)",
    "memorised_test": "the same share for test sentences, as a reference for memorised (%)",
    "mauve": "closeness of samples and references in a large model's features; higher is closer "
    "(0-1)",
    "similarity": "mean cosine of sentences and their reconstructions, as vectors of the encoder "
    "evals.similarity; baseline: another sentence's reconstruction (-1 to 1)",
    "external_ppl": "perplexity per token of the samples under the language model evals.external",
    # Source -> text: several texts per source
    "reference_bleu": "corpus BLEU against each source's references, mean over sets of one text "
    "per source (0-100)",
    "reference_bleu_best": "corpus BLEU of each source's text of the highest sentence BLEU (0-100)",
    "reference_rouge_<n>": "ROUGE F1 of n-grams against the source's references, mean over texts "
    "(0-100)",
    "reference_rouge_<n>_best": "ROUGE F1 of n-grams of the source's best text (0-100)",
    "reference_rouge_l": "ROUGE F1 of the longest common subsequence, mean over texts (0-100)",
    "reference_rouge_l_best": "the same of the source's best text (0-100)",
    "reference_bertscore": "BERTScore F1 against the source's references, mean over texts (0-100)",
    "reference_bertscore_best": "BERTScore F1 of the source's best text (0-100)",
    "<group>_self_bleu": "BLEU-4 of each text of a source against its others, mean over sources "
    "(0-100)",
    "<group>_dist_<N>": "distinct N-grams over all N-grams of the texts of one source, mean (0-1)",
    "<group>_jaccard": "shared bigrams over all bigrams of two texts of one source, mean (0-1)",
    "<group>_distinct": "different texts of one source, mean",
    "dialogue_bleu_recall": "BLEU-3 of the best response to each reference, mean",
    "dialogue_bleu_precision": "BLEU-3 of each response against its best reference, mean",
    "dialogue_bleu_f1": "harmonic mean of both",
    "dialogue_intra_dist_<N>": "distinct N-grams over all of one response, mean (0-1)",
    "dialogue_length": "mean words of a response",
    "dialogue_average": "cosine of average word vectors, best response of each context (0-1)",
    "dialogue_extrema": "cosine of extreme values of word vectors, best response (0-1)",
    "dialogue_greedy": "mean cosine of best matching words, best response (0-1)",
    "latent_share": "change of greedy texts by the latent, 1 - latent_jaccard, over that of random "
    "texts of one latent",
    "latent_ignored": "yes if latent_share is below 0.05",
    # Interpolation between two posterior means
    "<path>_smoothness": "word mover's distance of the ends over the length of the decoded path; "
    "mean over pairs, higher is smoother (0-1)",
    "<path>_smoothness_max": "smoothness of the smoothest pair (0-1)",
    "<path>_smoothness_min": "smoothness of the least smooth pair (0-1)",
    # Further bounds
    "nll_prior": "upper bound on -log p(x) from draws of the prior alone (nats/sentence)",
    "nll_prior_above": "nll_prior minus nll_K, sentence by sentence (nats/sentence)",
    "neg_elbo_refined": "neg_elbo of posteriors refined by Langevin steps (nats/sentence)",
    "refined_gain": "neg_elbo minus neg_elbo_refined, sentence by sentence (nats/sentence)",
    # The embedded corpus, which has a known grammar
    "exact": "exact -log p(x) under the grammar (nats/sentence)",
    "ppl_w_floor": "perplexity per word of the grammar itself, the lowest possible",
    "excess": "nll_K minus exact, sentence by sentence (nats/sentence)",
    "<kind>_grammatical": "share of the texts that the grammar accepts (%)",
    "<kind>_distinct": "share of distinct texts among the accepted ones (%)",
    # Labels and factors
    "probe_<label>_each_<n>_balanced": "mean over labels of its recall, trained on n of each (%)",
    "probe_<label>_each_<n>_f1": "mean over labels of its F1 score, trained on n of each (%)",
    "probe_<label>_each_<n>": "test accuracy of a linear probe trained on n sentences of each "
    "label (%)",
    "sri_<label>_<n>": "test accuracy of a linear layer on the first n training sentences, by SGD "
    "as published (%)",
    "sri_<label>_<n>_logistic": "the same by L2 logistic regression (%)",
    # Reports from before November 2026: n is the total number of labels.
    "probe_<label>_<n>_balanced": "mean over labels of its recall on the test split (%)",
    "probe_<label>_<n>_f1": "mean over labels of its F1 score on the test split (%)",
    "probe_<label>_balanced": "mean over labels of its recall, cross-validated (%)",
    "probe_<label>_f1": "mean over labels of its F1 score, cross-validated (%)",
    "probe_<label>_<n>": "test accuracy of a linear probe trained on n labels (%)",
    "probe_<label>": "accuracy of a linear probe on posterior means, cross-validated (%)",
    "cluster_<label>_accuracy": "accuracy of Gaussian mixture clusters after the best matching (%)",
    "cluster_<label>_nmi": "normalised mutual information of clusters and labels (0-1)",
    "attribute_<label>_order": "share of test pairs that the attribute vector orders right (0-1)",
    "attribute_<label>_flip_<scale>": "share of sentences judged to have the other value after "
    "moving by scale times the attribute vector (%)",
    "attribute_<label>_bleu_<scale>": "corpus BLEU of the moved sentences with the original ones "
    "(0-100)",
    # Natural language understanding tasks
    "nlu_<score>_each_<n>": "of a head that saw n training examples of each class, mean over draws",
    "nlu_accuracy": "accuracy on the task's validation split (%)",
    "nlu_macro_f1": "mean over classes of the F1 score (%)",
    "nlu_f1": "F1 score of the second of two classes (%)",
    "nlu_matthews": "Matthews correlation (%)",
    "nlu_spearman": "rank correlation of predicted and true values (%)",
    "nlu_pearson": "correlation of predicted and true values (%)",
    "z_diff": "accuracy of the fixed factor predicted from mean differences of latent pairs (0-1)",
    "z_min_var": "accuracy of the fixed factor predicted from the least variable dimension (0-1)",
    "mig": "mutual information gap between the two best dimensions of a factor (0-1)",
    "dci_disentanglement": "how far each dimension predicts one factor only (0-1)",
    "dci_completeness": "how far each factor is predicted by one dimension only (0-1)",
    "dci_informativeness": "how well the factors are predicted from the latent (0-1)",
}
# Rows of the compatible modes; the unit says what each is averaged over.
COMPATIBLE: dict[str, str] = {
    "ppl": "perplexity as the mode computes it",
    "elbo": "evidence bound as the mode computes it",
    "nll": "what the mode calls nll; see its unit",
    "kl": "KL term as the mode averages it",
    "rec": "reconstruction loss as the mode computes it",
    "au": "active units as the mode counts them",
    "mi": "mutual information as the mode estimates it",
    "ess": "effective sample size of the mode's draws",
}
# Headings of groups of metrics in a report, each with the first definition of its group.
GROUPS = {
    "Likelihood": "rec",
    "Use of the latent": "kl",
    "Reconstruction": "token_accuracy",
    "Samples": "samples",
    "Texts of a source": "reference_bleu",
    "Interpolation": "<path>_smoothness",
    "Further bounds": "nll_prior",
    "Against the grammar": "exact",
    "Labels and factors": "probe_<label>_each_<n>_balanced",
    "Language understanding": "nlu_<score>_each_<n>",
    "Disentanglement": "z_diff",
}
ELSEWHERE = "Others"  # heading of metrics registered by other packages
GREEDY = "greedy_"  # prefix of metrics of greedily decoded samples
# Numbers match digits only, so `nll_prior` does not match nll_<K>.
_SLOTS = {"K": r"\d+", "T": r"[\d.]+", "N": r"\d+", "n": r"\d+", "scale": r"[\d.]+"}
_SLOTS["group"] = r"(?:source|latent)"  # metrics over several texts of one source


def _compiled(name: str) -> re.Pattern[str]:
    text, *rest = re.split(r"<(\w+)>", name)
    pattern = re.escape(text)
    for slot, text in zip(rest[::2], rest[1::2], strict=True):
        pattern += _SLOTS.get(slot, r".+") + re.escape(text)
    return re.compile(pattern)


# Exact names first, so that patterns do not shadow them.
_ORDER = sorted(DEFINITIONS, key=lambda name: "<" in name)
_PATTERNS = {name: _compiled(name) for name in _ORDER}


def pattern_of(name: str) -> str | None:
    """The entry of `DEFINITIONS` that matches a metric's name; None for a metric it lacks."""
    return next((entry for entry, pattern in _PATTERNS.items() if pattern.fullmatch(name)), None)


def place(name: str) -> tuple[int, str]:
    """A metric's position in a report and its heading, by name."""
    pattern = pattern_of(name) or pattern_of(name.removeprefix(GREEDY))
    order = list(DEFINITIONS)
    if pattern is None:
        return len(order), ELSEWHERE
    at = order.index(pattern)
    return at, [title for title, first in GROUPS.items() if order.index(first) <= at][-1]


def define(name: str) -> str:
    """The definition of a metric by its name in a report; empty for a metric not listed here."""
    pattern = pattern_of(name)
    if pattern is None and name.startswith(GREEDY) and (plain := define(name.removeprefix(GREEDY))):
        return f"of greedy samples: {plain}"
    return DEFINITIONS[pattern] if pattern else ""


def reference() -> str:
    """Markdown: all definitions, one table per group."""
    parts = []
    for name, meaning in DEFINITIONS.items():
        title = place(name)[1]
        if name == GROUPS.get(title):
            parts.append(f"## {title}\n\n| metric | meaning |\n| --- | --- |")
        parts[-1] += f"\n| `{name}` | {meaning.replace('|', chr(92) + '|')} |"
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
