//! What numbers an activation takes, channel by channel: a running summary whose size does not grow with what it has seen.

/// Of a tensor `[.., channels]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Range {
    pub low: Vec<f32>,
    pub high: Vec<f32>,
    /// Sums of squares.
    squares: Vec<f64>,
    rows: u64,
}

impl Range {
    /// Of nothing yet.
    pub fn new(channels: usize) -> Self {
        Self { low: vec![0.0; channels], high: vec![0.0; channels], squares: vec![0.0; channels], rows: 0 }
    }

    /// Takes in more rows; numbers that are none are passed over.
    pub fn add(&mut self, values: &[f32]) {
        let channels = self.low.len().max(1);
        for row in values.chunks_exact(channels) {
            self.rows += 1;
            for (channel, &value) in row.iter().enumerate().filter(|(_, value)| value.is_finite()) {
                self.low[channel] = self.low[channel].min(value);
                self.high[channel] = self.high[channel].max(value);
                self.squares[channel] += f64::from(value) * f64::from(value);
            }
        }
    }

    pub fn channels(&self) -> usize {
        self.low.len()
    }

    /// The largest magnitude of a channel.
    pub fn largest(&self, channel: usize) -> f32 {
        self.high[channel].max(-self.low[channel])
    }

    /// The mean square of a channel.
    pub fn power(&self, channel: usize) -> f64 {
        self.squares[channel] / self.rows.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_zero_and_every_row_it_was_given() {
        let mut range = Range::new(2);
        range.add(&[1.0, -2.0, 3.0, f32::NAN]);
        range.add(&[-1.0, -4.0]);
        assert_eq!((range.low.as_slice(), range.high.as_slice()), ([-1.0, -4.0].as_slice(), [3.0, 0.0].as_slice()));
        assert_eq!(range.largest(1), 4.0);
        assert!((range.power(0) - 11.0 / 3.0).abs() < 1e-9);
    }
}
