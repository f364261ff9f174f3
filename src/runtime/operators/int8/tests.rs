use super::*;
use crate::vector::tanh_gelu;

fn numbers(seed: u32, count: usize) -> impl Iterator<Item = u8> {
    (0..count as u32).map(move |i| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)).to_be_bytes()[1])
}

/// A weight [K, N] and what goes with it.
struct Parts {
    weight: Vec<i8>,
    offsets: Vec<i32>,
    scales: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Parts {
    fn new([inputs, outputs]: [usize; 2], with_bias: bool) -> Self {
        let some = |seed, by: f32| numbers(seed, outputs).map(|n| (f32::from(n) - 120.0) * by).collect::<Vec<f32>>();
        Self {
            weight: numbers(3, inputs * outputs).map(|n| n as i8).collect(),
            offsets: numbers(4, outputs).map(|n| i32::from(n) * 11 - 999).collect(),
            scales: some(5, 1e-6),
            bias: with_bias.then(|| some(6, 1e-2)),
        }
    }

    fn laid_out(&self) -> Weight {
        let outputs = self.scales.len();
        let packed = Packed::new(&self.weight, outputs, |panels, each| (0..panels).for_each(each));
        let columns = packed.column_sums().len();
        let filled = |x: &Vec<f32>| x.iter().copied().chain(std::iter::repeat(0.0)).take(columns).collect();
        let offsets = self.offsets.iter().copied().chain(std::iter::repeat(0)).take(columns).collect();
        Weight { packed, offsets, scales: filled(&self.scales), bias: self.bias.as_ref().map(filled) }
    }

    /// One result by plain arithmetic.
    fn plain(&self, x: &[u8], column: usize, row_scale: Option<f32>, gelu: bool) -> f32 {
        let outputs = self.scales.len();
        let sum: i32 = x.iter().enumerate().map(|(i, &x)| i32::from(x) * i32::from(self.weight[i * outputs + column])).sum();
        let value = (sum + self.offsets[column]) as f32 * self.scales[column];
        let value = row_scale.map_or(value, |scale| value * scale) + self.bias.as_ref().map_or(0.0, |bias| bias[column]);
        if gelu { tanh_gelu::<true>(value) } else { value }
    }
}

#[test]
fn tasks_are_plain_arithmetic_at_odd_sizes() {
    if !is_there() {
        eprintln!("SKIPPED: this processor has no dot products of 8-bit numbers");
        return;
    }
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 4, 47), (8, 7, 48), (9, 64, 49), (17, 130, 97), (23, 257, 144)] {
        for (with_bias, with_row_scales, gelu) in
            [(false, false, false), (true, true, false), (false, false, true), (true, true, true)]
        {
            let parts = Parts::new([inputs, outputs], with_bias);
            let weight = parts.laid_out();
            let x: Vec<u8> = numbers(1, rows * inputs).collect();
            let width = weight.packed.row_len();
            // Whatever is behind a row meets zeros of the weight.
            let padded: Vec<u8> = x
                .chunks(inputs)
                .flat_map(|row| row.iter().copied().chain(std::iter::repeat(77)).take(width).collect::<Vec<_>>())
                .collect();
            let row_scales: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
            let row_scales = with_row_scales.then_some(&row_scales[..]);
            let (mut floats, mut bytes) = (vec![f32::NAN; rows * outputs], vec![0; rows * outputs]);
            let (inverse, zero) = (1.0 / 0.031, 91.0);
            let targets =
                [Target::Floats(Shared(floats.as_mut_ptr())), Target::Rounded { to: Shared(bytes.as_mut_ptr()), inverse, zero }];
            for (target, panel) in targets.iter().flat_map(|target| (0..weight.packed.panels()).map(move |panel| (target, panel)))
            {
                Task { weight: &weight, x: &padded, row_scales, first: 0, panel, gelu, outputs, target }.run();
            }
            for row in 0..rows {
                for column in 0..outputs {
                    let own = &x[row * inputs..][..inputs];
                    let wanted = parts.plain(own, column, row_scales.map(|scales| scales[row]), gelu);
                    let (found, rounded) = (floats[row * outputs + column], bytes[row * outputs + column]);
                    let place = format!("row {row}, column {column} of {rows} x {inputs} x {outputs}, gelu {gelu}");
                    assert!((found - wanted).abs() <= 1e-6 * wanted.abs().max(1e-3), "{found} for {wanted}: {place}");
                    let expected = ((found * inverse).round_ties_even() + zero).clamp(0.0, 255.0) as u8;
                    assert_eq!(rounded, expected, "{place}");
                }
            }
        }
    }
}

#[test]
fn rounding_goes_to_the_even_number_and_stays_within_a_byte() {
    for (x, zero, wanted) in
        [(0.5, 0.0, 0), (1.5, 0.0, 2), (-0.5, 10.0, 10), (2.5, 10.0, 12), (-1e9, 128.0, 0), (1e9, 3.0, 255), (-7.6, 7.0, 0)]
    {
        assert_eq!(round(x, zero), wanted, "{x} around {zero}");
    }
}
