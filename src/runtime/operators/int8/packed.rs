//! Products in 8 bits by the dot products of AVX-512 (VNNI): a weight laid out for them once, and a few rows at a time times a few of its columns.
//!
//! Sums are of integers and exact, so that neither the order of work nor the number of rows shows in them.

use super::super::Shared;

/// Columns of a panel: three registers of 16 sums.
pub const COLUMNS: usize = 48;

/// Rows of a tile. With three registers each, and those of the weight, they are what the processor has.
const ROWS: usize = 8;

/// Inputs that one instruction takes of each column.
pub const GROUP: usize = 4;

/// One register: 4 inputs of 16 columns.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line([i8; 64]);

const LINES: usize = COLUMNS / 16;

/// A weight [K, N] in panels of [`COLUMNS`], zeros behind its last column and its last input.
pub struct Packed {
    /// Groups of inputs.
    groups: usize,
    /// [panels, groups, LINES]
    lines: Vec<Line>,
    /// The sum of each column's numbers, zeros behind the last.
    sums: Vec<i32>,
}

/// A tile's sums, by row.
type Sums = [[i32; COLUMNS]; ROWS];

/// Whether this processor has the instructions.
pub fn is_there() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Makes a panel's lines [groups, LINES] and the sums of its columns of `weight` [K, N].
fn pack_panel(weight: &[i8], outputs: usize, first: usize, lines: &mut [Line], sums: &mut [i32]) {
    let count = COLUMNS.min(outputs - first);
    for (group, lines) in weight.chunks(GROUP * outputs).zip(lines.chunks_exact_mut(LINES)) {
        let mut rows = [[0i8; COLUMNS]; GROUP];
        for (row, from) in rows.iter_mut().zip(group.chunks_exact(outputs)) {
            match from[first..].first_chunk::<COLUMNS>() {
                Some(from) => *row = *from,
                None => row[..count].copy_from_slice(&from[first..]),
            }
            sums.iter_mut().zip(row.iter()).for_each(|(sum, &number)| *sum += i32::from(number));
        }
        for (line, first) in lines.iter_mut().zip((0..COLUMNS).step_by(16)) {
            for (column, numbers) in line.0.chunks_exact_mut(GROUP).enumerate() {
                let at = first + column;
                numbers.copy_from_slice(&[rows[0][at], rows[1][at], rows[2][at], rows[3][at]]);
            }
        }
    }
}

impl Packed {
    /// Lays out `weight` [K, N]; `each` calls its function for all numbers below its first argument, on all threads.
    pub fn new(weight: &[i8], outputs: usize, each: impl FnOnce(usize, &(dyn Fn(usize) + Sync + Send))) -> Self {
        let groups = (weight.len() / outputs.max(1)).div_ceil(GROUP);
        let panels = outputs.div_ceil(COLUMNS);
        let mut lines = vec![Line([0; 64]); panels * groups * LINES];
        let mut sums = vec![0; panels * COLUMNS];
        let (to, all) = (Shared(lines.as_mut_ptr()), Shared(sums.as_mut_ptr()));
        each(panels, &|panel| {
            // SAFETY: each panel's lines and sums are one call's.
            let (lines, sums) = unsafe { (to.part(panel * groups * LINES, groups * LINES), all.part(panel * COLUMNS, COLUMNS)) };
            pack_panel(weight, outputs, panel * COLUMNS, lines, sums);
        });
        Self { groups, lines, sums }
    }

    /// Bytes of a row of what is multiplied: K, and zeros up to a whole group.
    pub fn row_len(&self) -> usize {
        self.groups * GROUP
    }

    pub fn panels(&self) -> usize {
        self.sums.len() / COLUMNS
    }

    /// The sum of each column, zeros behind the last.
    pub fn column_sums(&self) -> &[i32] {
        &self.sums
    }

    /// `rows` [M, `row_len`] times a panel's columns; `done` is given each tile's first row and, row by row, its sums.
    ///
    /// # Panics
    /// Where the processor lacks the instructions ([`is_there`]) or `rows` are no whole rows.
    #[inline(always)]
    pub fn multiply(&self, rows: &[u8], panel: usize, mut done: impl FnMut(usize, &[[i32; COLUMNS]])) {
        let width = self.row_len();
        assert!(is_there() && rows.len().is_multiple_of(width.max(1)), "rows of {width} bytes");
        let lines = &self.lines[panel * self.groups * LINES..][..self.groups * LINES];
        let mut sums: Sums = [[0; COLUMNS]; ROWS];
        for (number, rows) in rows.chunks(ROWS * width).enumerate() {
            let count = rows.len() / width;
            // SAFETY: the processor has the instructions, as just asked.
            unsafe { tile(rows, width, lines, &mut sums) };
            done(number * ROWS, &sums[..count]);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn tile(_: &[u8], _: usize, _: &[Line], _: &mut Sums) {
    unreachable!("no such instructions are there")
}

/// Up to [`ROWS`] rows of `width` bytes times a panel's lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn tile(rows: &[u8], width: usize, lines: &[Line], sums: &mut Sums) {
    match rows.len() / width {
        1 => tile_of::<1>(rows, width, lines, sums),
        2 => tile_of::<2>(rows, width, lines, sums),
        3 => tile_of::<3>(rows, width, lines, sums),
        4 => tile_of::<4>(rows, width, lines, sums),
        5 => tile_of::<5>(rows, width, lines, sums),
        6 => tile_of::<6>(rows, width, lines, sums),
        7 => tile_of::<7>(rows, width, lines, sums),
        _ => tile_of::<ROWS>(rows, width, lines, sums),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn tile_of<const COUNT: usize>(rows: &[u8], width: usize, lines: &[Line], sums: &mut Sums) {
    use std::arch::x86_64::{
        _mm512_dpbusd_epi32, _mm512_load_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
    };

    assert!(rows.len() >= COUNT * width && width == lines.len() / LINES * GROUP, "{COUNT} rows of {width} bytes");
    let mut all = [[_mm512_setzero_si512(); LINES]; COUNT];
    for (group, lines) in lines.chunks_exact(LINES).enumerate() {
        // SAFETY: a line is 64 bytes in memory of its own kind, which is aligned to as many.
        let weights: [_; LINES] = std::array::from_fn(|line| unsafe { _mm512_load_si512((&raw const lines[line]).cast()) });
        for (row, all) in all.iter_mut().enumerate() {
            // SAFETY: the row has this group, as asserted above.
            let inputs = unsafe { rows.as_ptr().add(row * width + group * GROUP).cast::<i32>().read_unaligned() };
            let inputs = _mm512_set1_epi32(inputs);
            for (sum, &weights) in all.iter_mut().zip(&weights) {
                *sum = _mm512_dpbusd_epi32(*sum, inputs, weights);
            }
        }
    }
    for (all, sums) in all.iter().zip(sums.iter_mut()) {
        for (sum, place) in all.iter().zip(sums.chunks_exact_mut(16)) {
            // SAFETY: 16 sums are 64 bytes.
            unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), *sum) };
        }
    }
}
