//! How sure a score is, by resampling images: bootstrap intervals, and a paired test between two systems.

use rayon::prelude::*;

use super::scorer::{ImageScores, Summary};
use crate::random::Stream;

/// Scores of an image, of which any selection has M values of its own.
pub trait Corpus<const M: usize>: Sized + Sync {
    /// The metrics of a selection of images.
    fn values<'a>(images: impl Iterator<Item = &'a Self>) -> [f64; M]
    where
        Self: 'a;
}

impl Corpus<6> for ImageScores {
    fn values<'a>(images: impl Iterator<Item = &'a Self>) -> [f64; 6] {
        Summary::of(images).values()
    }
}

/// Bounds that hold 95% of the resampled values of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// Two systems on the same images, metric by metric (in the order of `METRIC_NAMES`, or of those that are compared).
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison<const M: usize = 6> {
    /// The second system's score minus the first's.
    pub difference: [f64; M],
    /// 95% interval of the difference, from a paired bootstrap.
    pub interval: [Interval; M],
    /// Two-sided p-value of a paired permutation test: how often a difference as large comes up when, image by image, a coin decides
    /// which system wrote which caption.
    pub p_value: [f64; M],
}

/// 95% percentile intervals of the metrics from `rounds` resamplings of the images. None without images or rounds.
pub fn bootstrap<const M: usize, I: Corpus<M>>(images: &[I], rounds: usize, seed: u64) -> Option<[Interval; M]> {
    let resampled = |round: u64| {
        let mut random = draws(seed, round);
        I::values((0..images.len()).map(|_| &images[random.below(images.len() as u64) as usize]))
    };
    intervals(images.len(), rounds, resampled)
}

/// Compares two systems that captioned the same images. None without images or rounds.
pub fn compare<const M: usize, I: Corpus<M>>(first: &[I], second: &[I], rounds: usize, seed: u64) -> Option<Comparison<M>> {
    assert_eq!(first.len(), second.len(), "both systems are scored on the same images");
    let count = first.len();
    let minus = |a: [f64; M], b: [f64; M]| -> [f64; M] { std::array::from_fn(|m| a[m] - b[m]) };
    let difference = minus(I::values(second.iter()), I::values(first.iter()));

    let interval = intervals(count, rounds, |round| {
        let mut random = draws(seed, round);
        let picks: Vec<usize> = (0..count).map(|_| random.below(count as u64) as usize).collect();
        minus(I::values(picks.iter().map(|&i| &second[i])), I::values(picks.iter().map(|&i| &first[i])))
    })?;

    let permuted = |round: u64| {
        // Streams of their own, apart from the bootstrap's.
        let mut random = draws(!seed, round);
        let swap: Vec<bool> = (0..count).map(|_| random.next_u64() >> 63 == 1).collect();
        let side = |flip: bool| {
            I::values(swap.iter().enumerate().map(move |(i, &swapped)| if swapped == flip { &second[i] } else { &first[i] }))
        };
        minus(side(false), side(true))
    };
    let at_least: [usize; M] = (0..rounds as u64)
        .into_par_iter()
        .map(|round| {
            let found = permuted(round);
            // A hair of slack: equal differences may be summed in another order.
            std::array::from_fn(|m| usize::from(found[m].abs() >= difference[m].abs() - 1e-12))
        })
        .reduce(|| [0; M], |a, b| std::array::from_fn(|m| a[m] + b[m]));
    let p_value = at_least.map(|hits| (hits + 1) as f64 / (rounds + 1) as f64);
    Some(Comparison { difference, interval, p_value })
}

fn intervals<const M: usize>(
    num_images: usize,
    rounds: usize,
    round: impl Fn(u64) -> [f64; M] + Sync + Send,
) -> Option<[Interval; M]> {
    if num_images == 0 || rounds == 0 {
        return None;
    }
    let samples: Vec<[f64; M]> = (0..rounds as u64).into_par_iter().map(round).collect();
    Some(std::array::from_fn(|metric| {
        let mut values: Vec<f64> = samples.iter().map(|sample| sample[metric]).collect();
        values.sort_unstable_by(f64::total_cmp);
        Interval { low: quantile(&values, 0.025), high: quantile(&values, 0.975) }
    }))
}

/// Linear interpolation between order statistics, as numpy's default. `sorted` must not be empty.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

/// Draws that start somewhere else for each (seed, stream).
fn draws(seed: u64, stream: u64) -> Stream {
    Stream::new(Stream::new(seed).next_u64() ^ Stream::new(stream).next_u64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::bleu::BleuCounts;

    fn image(cider: f64) -> ImageScores {
        let correct = (cider * 4.0) as u64;
        let bleu = BleuCounts { correct: [correct, 0, 0, 0], guess: [20, 19, 18, 17], candidate_len: 20, reference_len: 20 };
        ImageScores { bleu, rouge_l: cider / 10.0, cider }
    }

    fn spread(shift: f64) -> Vec<ImageScores> {
        (0..200).map(|i| image(f64::from(i * 37 % 100) / 50.0 + shift)).collect()
    }

    #[test]
    fn the_interval_is_that_of_the_normal_approximation() {
        let images = spread(0.0);
        let [.., cider] = bootstrap(&images, 2000, 7).unwrap();
        let mean = images.iter().map(|i| i.cider).sum::<f64>() / 200.0;
        let variance = images.iter().map(|i| (i.cider - mean).powi(2)).sum::<f64>() / 200.0;
        let half = 1.96 * (variance / 200.0).sqrt();
        assert!((cider.low - (mean - half)).abs() < 0.1 * half && (cider.high - (mean + half)).abs() < 0.1 * half, "{cider:?}");
    }

    #[test]
    fn a_seed_repeats_and_threads_do_not_matter() {
        let images = spread(0.0);
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let many = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        let run = |seed| (bootstrap(&images, 50, seed), compare(&images, &spread(0.01), 50, seed));
        assert_eq!(alone.install(|| run(1)), many.install(|| run(1)));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn a_system_equals_itself_and_a_clear_gain_is_seen() {
        let images = spread(0.0);
        let same = compare(&images, &images, 200, 3).unwrap();
        assert_eq!((same.difference, same.p_value), ([0.0; 6], [1.0; 6]));
        let better = compare(&images, &spread(0.5), 200, 3).unwrap();
        assert!(
            (better.difference[5] - 0.5).abs() < 1e-9 && better.p_value[5] < 0.01 && better.interval[5].low > 0.4,
            "{better:?}"
        );
    }

    #[test]
    fn chance_alone_is_not_called_a_difference() {
        // The second system is better on every other image and as much worse on the rest.
        let second: Vec<_> =
            spread(0.0).iter().enumerate().map(|(i, s)| image(s.cider + if i % 2 == 0 { 0.3 } else { -0.3 })).collect();
        let found = compare(&spread(0.0), &second, 500, 3).unwrap();
        assert!(found.p_value[5] > 0.5 && found.interval[5].low < 0.0 && found.interval[5].high > 0.0, "{found:?}");
    }

    #[test]
    fn nothing_to_resample_gives_nothing() {
        assert_eq!(bootstrap::<6, ImageScores>(&[], 10, 0), None);
        assert_eq!(bootstrap(&spread(0.0), 0, 0), None);
    }
}
