//! Passes and batches of a small corpus.

use std::collections::BTreeSet;

use super::*;
use crate::training::corpus::tests::corpus;

/// The numbers of all captions.
fn all(captions: &Captions) -> Vec<u32> {
    (0..captions.len() as u32).collect()
}

#[test]
fn a_pass_has_every_caption_once_in_an_order_that_follows_from_seed_and_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), 5000, 1000, 40);
    let epoch = |seed, number| Epoch::shuffled(&corpus.train, all(&corpus.train), 7, seed, number);
    let first = epoch(1, 0);
    assert_eq!(first.num_batches(), corpus.train.len().div_ceil(7));
    let mut seen: Vec<u32> = (0..first.num_batches()).flat_map(|b| first.batch(b).to_vec()).collect();
    seen.sort_unstable();
    assert_eq!(seen, all(&corpus.train));
    assert_eq!(first, epoch(1, 0));
    assert_ne!(first, epoch(2, 0));
    assert_ne!(first, epoch(1, 1));
    // Who a caption shares a batch with changes from pass to pass.
    let beside = |epoch: &Epoch| {
        let batch = (0..epoch.num_batches()).find(|&b| epoch.batch(b).contains(&0)).unwrap();
        epoch.batch(batch).iter().copied().collect::<BTreeSet<u32>>()
    };
    assert_ne!(beside(&first), beside(&epoch(1, 1)));
}

#[test]
fn almost_nothing_is_padding_and_lengths_come_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), 20_000, 1000, 40);
    let epoch = Epoch::shuffled(&corpus.train, all(&corpus.train), 40, 3, 0);
    let shape = Shape { images: Images::Embeddings, prefix_len: 10, prompt_len: 0, buckets: vec![], loss_on_padding: None };
    let batches: Vec<Batch> =
        (0..epoch.num_batches()).map(|b| Batch::new(&corpus, &corpus.train, epoch.batch(b), &shape)).collect();
    let (real, padded) = batches.iter().fold((0, 0), |(r, p), b| (r + b.caption_tokens, p + b.rows * b.tokens));
    assert_eq!(real, corpus.train.num_tokens());
    assert!((padded - real) as f64 / (padded as f64) < 0.02, "{real} of {padded}");
    let ascending = batches.windows(2).filter(|pair| pair[0].tokens <= pair[1].tokens).count();
    assert!(ascending < batches.len() * 7 / 10, "{ascending} of {}", batches.len());
}

#[test]
fn labels_stand_one_position_before_their_token() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), 50, 10, 9);
    let shape = Shape { images: Images::Embeddings, prefix_len: 3, prompt_len: 0, buckets: vec![], loss_on_padding: None };
    let numbers = [4u32, 11, 30];
    let batch = Batch::new(&corpus, &corpus.train, &numbers, &shape);
    let positions = 3 + batch.tokens;
    let lengths: Vec<usize> = numbers.iter().map(|&n| corpus.train.ids(n as usize).len()).collect();
    assert_eq!(batch.tokens, *lengths.iter().max().unwrap());
    assert_eq!(batch.labels.len(), lengths.iter().sum::<usize>());
    for (&position, &label) in batch.label_positions.iter().zip(&batch.labels) {
        let (row, at) = (position as usize / positions, position as usize % positions + 1 - 3);
        assert_eq!(batch.caption_ids[row * batch.tokens + at], label);
        assert!(at < lengths[row]);
    }
    assert_eq!(batch.attention_mask.iter().sum::<i64>() as usize, 3 * 3 + batch.caption_tokens);
    let embedding: Vec<f32> = corpus.embedding(corpus.train.image_row(11)).collect();
    assert_eq!(batch.clip_embeds[2..4], embedding[..]);
}

#[test]
fn padding_counts_where_the_original_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), 50, 10, 9);
    let shape = Shape { images: Images::Embeddings, prefix_len: 3, prompt_len: 0, buckets: vec![], loss_on_padding: Some(20) };
    let batch = Batch::new(&corpus, &corpus.train, &[0, 1], &shape);
    assert_eq!((batch.tokens, batch.labels.len()), (20, 40));
    assert_eq!(batch.labels.iter().filter(|&&l| l == 0).count(), 40 - batch.caption_tokens);
}

#[test]
fn a_filled_batch_has_the_same_labels_in_fixed_places() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), 50, 10, 9);
    let shape = Shape { images: Images::Embeddings, prefix_len: 3, prompt_len: 0, buckets: vec![12], loss_on_padding: None };
    let batch = Batch::new(&corpus, &corpus.train, &[4, 11], &shape);
    let filled = batch.filled(5, 3);
    assert_eq!((filled.rows, filled.tokens, filled.labels.len(), filled.caption_tokens), (5, 12, 60, batch.caption_tokens));
    assert_eq!((filled.clip_embeds.len(), filled.caption_ids.len(), filled.attention_mask.len()), (10, 60, 75));
    let weighted = Batch { label_weights: (0..batch.labels.len()).map(|n| n as f32).collect(), ..batch.clone() }.filled(5, 3);
    let kept: Vec<f32> =
        (0..60).filter(|&place| weighted.labels[place] >= 0).map(|place| weighted.label_weights[place]).collect();
    assert_eq!(kept, (0..batch.labels.len()).map(|n| n as f32).collect::<Vec<_>>());
    let counted: Vec<(usize, i64)> = (0..60).zip(filled.labels).filter(|(_, label)| *label >= 0).collect();
    assert_eq!(counted.len(), batch.labels.len());
    assert!(counted.iter().all(|&(place, label)| filled.caption_ids[place] == label && place < 24));
}

#[test]
fn buckets_are_few_and_cover_the_longest() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), 5000, 1000, 40);
    let cost = |buckets: &[usize]| -> usize {
        let shape =
            Shape { images: Images::Embeddings, prefix_len: 1, prompt_len: 0, buckets: buckets.to_vec(), loss_on_padding: None };
        (0..corpus.train.len()).map(|n| shape.tokens(corpus.train.ids(n).len())).sum()
    };
    let chosen = buckets(&corpus.train, 4);
    assert_eq!(chosen.len(), 4);
    assert!(chosen.is_sorted() && *chosen.last().unwrap() == 40);
    assert!(cost(&chosen) < cost(&buckets(&corpus.train, 3)));
    assert!(cost(&chosen) <= cost(&[10, 20, 30, 40]));
    assert_eq!(buckets(&corpus.train, 100).len(), 40);
    assert!(buckets(&corpus.train, 0).is_empty() && buckets(&Captions::default(), 3).is_empty());
}
