//! How far a run is, how fast what it computes comes, and how long the rest takes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::pipeline::artifact::Counts;
use crate::pipeline::reporter::{Reporter, Tick};

/// Tells the reporter how far a run is.
pub struct Progress<'a> {
    label: &'static str,
    unit: Option<&'static str>,
    reporter: &'a dyn Reporter,
    total: &'a AtomicU64,
    counted: &'a AtomicBool,
    known: u64,
    start: Instant,
    /// When the first result was there that had to be computed, and how many there were: loading a model is not its pace.
    first: Option<(Instant, u64)>,
}

impl<'a> Progress<'a> {
    /// `total` grows while files are counted, and stands once `counted` is set; `known` results are there already.
    pub fn new(
        label: &'static str,
        unit: Option<&'static str>,
        reporter: &'a dyn Reporter,
        total: &'a AtomicU64,
        counted: &'a AtomicBool,
        known: u64,
    ) -> Self {
        Self { label, unit, reporter, total, counted, known, start: Instant::now(), first: None }
    }

    pub fn reporter(&self) -> &dyn Reporter {
        self.reporter
    }

    /// `worked` is the number of images that were read for these counts.
    pub fn tell(&mut self, counts: &Counts, worked: u64) {
        let now = Instant::now();
        let seconds = (now - self.start).as_secs_f64().max(1e-3);
        let mut rates = vec![("images/s", counts.computed as f64 / seconds)];
        rates.extend(self.unit.map(|unit| (unit, counts.computed_weight as f64 / seconds)));
        let total = if self.counted.load(Ordering::Relaxed) { self.total.load(Ordering::Relaxed) } else { 0 };
        if self.first.is_none() && worked > 0 {
            self.first = Some((now, worked));
        }
        let left = self.first.filter(|_| total > 0).and_then(|(at, first)| {
            let rest = left_to_work(total, counts.found(), self.known, counts.found() - worked);
            let pace = Pace { seconds: (now - at).as_secs_f64(), images: worked - first };
            // The first results alone have no pace: the time since the start, the model's loading included, has to do.
            let pace = if pace.images == 0 { Pace { seconds, images: worked } } else { pace };
            pace.time_of(rest)
        });
        self.reporter.tick(&Tick { label: self.label, done: counts.found(), total, rates, failed: counts.failed, left });
    }
}

/// Of `total` files, those that have yet to be read: what is known already and has not come yet takes no time.
fn left_to_work(total: u64, done: u64, known: u64, reused: u64) -> u64 {
    total.saturating_sub(done).saturating_sub(known.saturating_sub(reused))
}

struct Pace {
    seconds: f64,
    images: u64,
}

impl Pace {
    fn time_of(&self, images: u64) -> Option<Duration> {
        (self.images > 0).then(|| Duration::from_secs_f64(self.seconds / self.images as f64 * images as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_takes_no_time() {
        assert_eq!(left_to_work(3000, 1500, 1400, 1400), 1500);
        // Known results that come later in the list.
        assert_eq!(left_to_work(3000, 1000, 1400, 400), 1000);
        // Known results of files that are gone.
        assert_eq!(left_to_work(100, 90, 1400, 50), 0);
        assert_eq!(Pace { seconds: 10.0, images: 5 }.time_of(3), Some(Duration::from_secs(6)));
        assert_eq!(Pace { seconds: 10.0, images: 0 }.time_of(3), None);
    }
}
