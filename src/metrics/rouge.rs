/// Weight of recall over precision, as pycocoevalcap has it.
const BETA: f64 = 1.2;

/// ROUGE-L of a candidate: the best precision and the best recall over the references, combined. References must not be none at all.
///
/// As in pycocoevalcap, a sequence without tokens counts as one token that only another empty sequence has.
pub fn rouge_l(candidate: &[u32], references: &[Vec<u32>]) -> f64 {
    let (mut precision, mut recall) = (0f64, 0f64);
    for reference in references {
        let shared = match (candidate, reference.as_slice()) {
            ([], []) => 1,
            (a, b) => longest_common_subsequence(a, b),
        };
        precision = precision.max(shared as f64 / candidate.len().max(1) as f64);
        recall = recall.max(shared as f64 / reference.len().max(1) as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

fn longest_common_subsequence(a: &[u32], b: &[u32]) -> usize {
    // row[j]: length for the part of `a` seen so far and b[..j].
    let mut row = vec![0usize; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_matters_and_gaps_do_not() {
        assert_eq!(longest_common_subsequence(&[1, 2, 3, 4], &[1, 9, 3, 4, 2]), 3);
        assert_eq!(longest_common_subsequence(&[], &[1]), 0);
        let score = rouge_l(&[1, 2, 3], &[vec![1, 3, 5, 6]]);
        let (p, r): (f64, f64) = (2.0 / 3.0, 0.5);
        assert!((score - (1.0 + 1.44) * p * r / (r + 1.44 * p)).abs() < 1e-12);
    }

    #[test]
    fn precision_and_recall_may_come_from_different_references() {
        let score = rouge_l(&[1, 2], &[vec![1], vec![1, 2, 3]]);
        assert!((score - 1.0).abs() < 1e-12);
    }

    #[test]
    fn empty_sequences_match_each_other_only() {
        assert_eq!(rouge_l(&[], &[vec![1]]), 0.0);
        assert_eq!(rouge_l(&[1], &[vec![]]), 0.0);
        assert_eq!(rouge_l(&[], &[vec![]]), 1.0);
    }
}
