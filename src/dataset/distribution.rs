//! How lengths are spread: exact statistics from counts a length, whatever the number of captions.

/// Counts of small whole numbers. Merging two is adding their counts, so the order of captions does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    counts: Vec<u64>,
    total: u64,
}

/// The usual figures; None of an empty distribution.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Figures {
    pub count: u64,
    pub mean: f64,
    /// Of a sample: divided by count - 1. 0 for a single value.
    pub std: f64,
    pub min: u64,
    /// Quantiles lie on the line between the two nearest values.
    pub q1: f64,
    pub median: f64,
    pub q3: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: u64,
}

/// Lengths from this on are counted as this.
const MAX_LENGTH: usize = 1 << 20;

impl Distribution {
    pub fn add(&mut self, length: usize) {
        let length = length.min(MAX_LENGTH);
        if length >= self.counts.len() {
            self.counts.resize(length + 1, 0);
        }
        self.counts[length] += 1;
        self.total += 1;
    }

    pub fn merge(mut self, other: &Self) -> Self {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.total += other.total;
        self
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    /// Each length that occurs, with how often.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(length, count)| (length as u64, *count))
    }

    /// How many are longer than `length`.
    pub fn above(&self, length: u64) -> u64 {
        self.counts().filter(|(l, _)| *l > length).map(|(_, count)| count).sum()
    }

    pub fn figures(&self) -> Option<Figures> {
        let (min, max) = (self.counts().next()?.0, self.counts().last()?.0);
        let n = self.total as f64;
        let mean = self.counts().map(|(l, c)| l as f64 * c as f64).sum::<f64>() / n;
        let squares: f64 = self.counts().map(|(l, c)| (l as f64 - mean).powi(2) * c as f64).sum();
        let std = if self.total > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        let [q1, median, q3, p95, p99] = [0.25, 0.5, 0.75, 0.95, 0.99].map(|share| self.quantile(share));
        Some(Figures { count: self.total, mean, std, min, q1, median, q3, p95, p99, max })
    }

    /// The value at `share` of the sorted list, between its neighbours where it falls between two.
    fn quantile(&self, share: f64) -> f64 {
        let place = (self.total.max(1) - 1) as f64 * share;
        let (low, high) = (self.value_at(place.floor() as u64), self.value_at(place.ceil() as u64));
        low + (high - low) * place.fract()
    }

    /// The value at `index` of the sorted list.
    fn value_at(&self, index: u64) -> f64 {
        let mut before = 0;
        for (length, count) in self.counts() {
            before += count;
            if index < before {
                return length as f64;
            }
        }
        0.0
    }

    /// At most `bins` bins from the least to the greatest value: (from, to, count), `to` being the first number that is not in it. All hold
    /// equally many whole numbers, so that no bin is higher only because it has room for one more.
    pub fn histogram(&self, bins: usize) -> Vec<(u64, u64, u64)> {
        self.histogram_beside(self, bins)
    }

    /// The same with the bins that `all` would have, which holds every number that is here.
    pub fn histogram_beside(&self, all: &Self, bins: usize) -> Vec<(u64, u64, u64)> {
        let Some(Figures { min, max, .. }) = all.figures() else { return Vec::new() };
        let width = (max - min + 1).div_ceil(bins.max(1) as u64);
        let mut out: Vec<_> = (min..=max).step_by(width as usize).map(|from| (from, from + width, 0)).collect();
        self.counts().for_each(|(n, count)| out[((n - min) / width) as usize].2 += count);
        out
    }

    /// [`histogram`](Self::histogram)'s bins as the bars of a picture: a whole number is in the middle of its place.
    pub fn bars(&self, bins: usize) -> Vec<(f64, f64, u64)> {
        self.bars_beside(self, bins)
    }

    /// The same with the bars that `all` would have.
    pub fn bars_beside(&self, all: &Self, bins: usize) -> Vec<(f64, f64, u64)> {
        self.histogram_beside(all, bins)
            .into_iter()
            .map(|(from, to, count)| (from as f64 - 0.5, to as f64 - 0.5, count))
            .collect()
    }
}

impl FromIterator<usize> for Distribution {
    fn from_iter<I: IntoIterator<Item = usize>>(lengths: I) -> Self {
        let mut out = Self::default();
        lengths.into_iter().for_each(|length| out.add(length));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_numpy() {
        let figures: Figures = [3, 1, 4, 1, 5, 9, 2, 6].into_iter().collect::<Distribution>().figures().unwrap();
        // numpy.percentile and std(ddof=1) of the same list.
        assert_eq!((figures.count, figures.min, figures.max), (8, 1, 9));
        assert_eq!((figures.q1, figures.median, figures.q3), (1.75, 3.5, 5.25));
        assert!((figures.p95 - 7.95).abs() < 1e-9 && (figures.p99 - 8.79).abs() < 1e-9);
        assert!((figures.mean - 3.875).abs() < 1e-12 && (figures.std - 2.748_376_143_938_713).abs() < 1e-12);
        assert_eq!(Distribution::default().figures(), None);
    }

    #[test]
    fn bins_hold_equally_many_whole_numbers() {
        let spread: Distribution = [1, 2, 2, 3, 5, 9].into_iter().collect();
        assert_eq!(spread.histogram(4), [(1, 4, 4), (4, 7, 1), (7, 10, 1)]);
        // Once each, from 6 to 36: with bins of 1.55 every other one would be twice as high.
        let even: Distribution = (6..=36).collect();
        for bins in [1, 2, 3, 7, 10, 15, 16, 20, 31, 100] {
            let found = even.histogram(bins);
            assert!(found.len() <= bins && found.iter().map(|bin| bin.2).sum::<u64>() == 31, "{bins}: {found:?}");
            let (last, others) = found.split_last().unwrap();
            assert!(others.iter().all(|bin| bin.2 == last.1 - last.0 && bin.1 - bin.0 == last.1 - last.0), "{bins}: {found:?}");
            assert!(found.windows(2).all(|pair| pair[0].1 == pair[1].0) && last.0 <= 36 && last.1 > 36, "{bins}: {found:?}");
        }
        let one: Distribution = [7, 7].into_iter().collect();
        assert_eq!(one.histogram(20), [(7, 8, 2)]);
        assert!(Distribution::default().histogram(20).is_empty());
    }

    #[test]
    fn a_number_is_in_the_middle_of_its_bar() {
        let few: Distribution = [3, 5, 5].into_iter().collect();
        assert_eq!(few.bars(20), [(2.5, 3.5, 1), (3.5, 4.5, 0), (4.5, 5.5, 2)]);
        assert_eq!(few.bars(2), [(2.5, 4.5, 1), (4.5, 6.5, 2)]);
        assert!(Distribution::default().bars(2).is_empty());
        let more: Distribution = [3, 5, 5, 7].into_iter().collect();
        assert_eq!(few.bars_beside(&more, 3), [(2.5, 4.5, 1), (4.5, 6.5, 2), (6.5, 8.5, 0)]);
        assert_eq!(Distribution::default().bars_beside(&few, 1), [(2.5, 5.5, 0)]);
    }

    #[test]
    fn merging_is_counting_together() {
        let a: Distribution = [1, 5].into_iter().collect();
        let b: Distribution = [2, 5, 70].into_iter().collect();
        assert_eq!(a.clone().merge(&b), [1, 5, 2, 5, 70].into_iter().collect());
        assert_eq!(b.merge(&a).above(4), 3);
    }
}
