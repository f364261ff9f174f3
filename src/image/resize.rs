//! Pillow's bicubic resize and torchvision's centre crop (which CLIP was trained with), computing only the rows and columns that survive.
//!
//! Pillow runs the width pass first and rounds to 8 bits before the height pass. `fast_image_resize` has Pillow's arithmetic but
//! takes the passes the other way round, so it is called once for each.

use std::cell::RefCell;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use serde::{Deserialize, Serialize};

/// How pixels of a resized picture are made from their neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    Lanczos,
    Bilinear,
    #[default]
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// By Pillow's number.
    pub(super) fn of_pillow(number: &serde_json::Value) -> Option<Self> {
        Some(match number.as_i64()? {
            1 => Self::Lanczos,
            2 => Self::Bilinear,
            3 => Self::Bicubic,
            4 => Self::Box,
            5 => Self::Hamming,
            _ => return None,
        })
    }

    fn kind(self) -> FilterType {
        match self {
            Self::Lanczos => FilterType::Lanczos3,
            Self::Bilinear => FilterType::Bilinear,
            Self::Bicubic => FilterType::CatmullRom,
            Self::Box => FilterType::Box,
            Self::Hamming => FilterType::Hamming,
        }
    }
}

/// One direction of a resize and crop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    /// Pixels there are; where among them the picture begins, and its length.
    source: u32,
    origin: f64,
    extent: f64,
    /// Pixels of the resized picture (which may never exist: it can be longer than memory).
    resized: u64,
    /// First pixel of the resized picture that survives, and how many do.
    first: u64,
    count: u32,
    /// Black pixels before them, and the length of the result.
    before: u32,
    output: u32,
}

impl Axis {
    pub(super) fn new(source: u32, resized: u64, output: u32) -> Self {
        Self::of_part(source, 0.0, source.into(), resized, output)
    }

    /// The picture is `extent` pixels from `origin`, of `source`.
    pub(super) fn of_part(source: u32, origin: f64, extent: f64, resized: u64, output: u32) -> Self {
        if resized >= u64::from(output) {
            // Half of what is too much, rounded; a tie goes to the even neighbour. (Hugging Face's own processors round down,
            // which gives other pixels where 3, 7, 11 ... are too much.)
            let surplus = resized - u64::from(output);
            let half = surplus / 2;
            Self { source, origin, extent, resized, first: half + (surplus & half & 1), count: output, before: 0, output }
        } else {
            let count = resized as u32;
            Self { source, origin, extent, resized, first: 0, count, before: (output - count) / 2, output }
        }
    }

    fn is_resized(&self) -> bool {
        self.extent != self.resized as f64
    }

    /// Source pixels a pixel of the resized picture.
    fn scale(&self) -> f64 {
        self.extent / self.resized as f64
    }

    /// Source pixels that the surviving ones are made from: first and count, with a margin that the filter may not touch.
    fn needed(&self) -> (u32, u32) {
        if !self.is_resized() {
            return (self.first as u32, self.count);
        }
        // No filter reaches further than Lanczos, 3 pixels of the resized picture.
        let reach = 3.0 * self.scale().max(1.0) + 2.0;
        let begin = (self.origin + self.first as f64 * self.scale() - reach).floor().max(0.0) as u32;
        let end = (self.origin + (self.first as f64 + f64::from(self.count)) * self.scale() + reach).ceil() as u32;
        (begin, end.min(self.source) - begin)
    }

    /// The same, to be resized from source pixels `begin..begin + count` alone: where the surviving part begins in them, and its
    /// length.
    fn window(&self, (begin, count): (u32, u32)) -> (f64, f64) {
        if !self.is_resized() {
            return (f64::from(self.first as u32 - begin), f64::from(self.count));
        }
        let left = self.origin + self.first as f64 * self.scale() - f64::from(begin);
        (left, (f64::from(self.count) * self.scale()).min(f64::from(count) - left))
    }
}

#[derive(Default)]
struct Workspace {
    resizer: Resizer,
    between: Vec<u8>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

pub(super) fn resize_and_crop(image: &RgbImage, across: Axis, down: Axis, filter: Filter) -> RgbImage {
    if across.count == 0 || down.count == 0 || image.is_empty() {
        return RgbImage::new(across.output, down.output);
    }
    WORKSPACE.with_borrow_mut(|Workspace { resizer, between }| {
        let rows = down.needed();
        let width = image.width() as usize;
        let source = &image.as_raw()[rows.0 as usize * width * 3..][..rows.1 as usize * width * 3];
        let needed = rows.1 as usize * across.count as usize * 3;
        if between.len() < needed {
            between.resize(needed, 0);
        }
        let between = &mut between[..needed];
        let (left, length) = across.window((0, across.source));
        pass(resizer, filter, (source, image.width(), rows.1), (between, across.count, rows.1), |o| {
            o.crop(left, 0.0, length, f64::from(rows.1))
        });

        let mut kept = vec![0; down.count as usize * across.count as usize * 3];
        let (top, length) = down.window(rows);
        pass(resizer, filter, (between, across.count, rows.1), (&mut kept, across.count, down.count), |o| {
            o.crop(0.0, top, f64::from(across.count), length)
        });
        place(kept, across, down)
    })
}

/// Pixels, width and height.
type Pixels<'a> = (&'a [u8], u32, u32);
type Target<'a> = (&'a mut [u8], u32, u32);

fn pass(resizer: &mut Resizer, filter: Filter, from: Pixels, to: Target, crop: impl Fn(ResizeOptions) -> ResizeOptions) {
    let options = crop(ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter.kind())));
    let source = ImageRef::new(from.1, from.2, from.0, PixelType::U8x3).expect("three bytes a pixel were cut out");
    let mut target = Image::from_slice_u8(to.1, to.2, to.0, PixelType::U8x3).expect("three bytes a pixel were reserved");
    resizer.resize(&source, &mut target, &options).expect("one pixel type, and a window within the source");
}

/// Puts the surviving pixels in the middle of a black picture, unless they fill it.
fn place(kept: Vec<u8>, across: Axis, down: Axis) -> RgbImage {
    let (width, height) = (across.output, down.output);
    if across.count == width && down.count == height {
        return RgbImage::from_raw(width, height, kept).expect("three bytes a pixel were reserved");
    }
    let mut out = RgbImage::new(width, height);
    let row_bytes = across.count as usize * 3;
    let rows = out.chunks_exact_mut(width as usize * 3).skip(down.before as usize);
    for (row, kept) in rows.zip(kept.chunks_exact(row_bytes)) {
        row[across.before as usize * 3..][..row_bytes].copy_from_slice(kept);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(width: u32, height: u32) -> RgbImage {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        RgbImage::from_fn(width, height, |_, _| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            image::Rgb([(state >> 33) as u8, (state >> 41) as u8, (state >> 49) as u8])
        })
    }

    /// The whole resized picture, then the crop.
    fn in_full(image: &RgbImage, across: Axis, down: Axis) -> RgbImage {
        let (wide, high) = (across.resized as u32, down.resized as u32);
        let resized = resize_and_crop(
            image,
            Axis::new(image.width(), wide.into(), wide),
            Axis::new(image.height(), high.into(), high),
            Filter::Bicubic,
        );
        RgbImage::from_fn(across.output, down.output, |x, y| {
            let at = |axis: &Axis, i: u32| i.checked_sub(axis.before).filter(|i| *i < axis.count).map(|i| i + axis.first as u32);
            match (at(&across, x), at(&down, y)) {
                (Some(x), Some(y)) => *resized.get_pixel(x, y),
                _ => image::Rgb([0; 3]),
            }
        })
    }

    #[test]
    fn crop_offsets_round_to_even() {
        let axis = |resized, output| {
            let axis = Axis::new(100, resized, output);
            (axis.first, axis.count, axis.before)
        };
        assert_eq!(axis(298, 224), (37, 224, 0));
        assert_eq!(axis(224, 224), (0, 224, 0));
        assert_eq!([225, 226, 227, 228, 229, 335, 337].map(|n| axis(n, 224).0), [0, 1, 2, 2, 2, 56, 56]);
        assert_eq!(axis(221, 224), (0, 221, 1));
    }

    #[test]
    fn a_picture_smaller_than_the_crop_lies_on_black() {
        let image = RgbImage::from_pixel(3, 9, image::Rgb([200, 100, 50]));
        let out = resize_and_crop(&image, Axis::new(3, 3, 6), Axis::new(9, 9, 4), Filter::Bicubic);
        let row: Vec<u8> = out.rows().next().unwrap().map(|p| p.0[0]).collect();
        assert_eq!(row, [0, 200, 200, 200, 0, 0]);
        assert!(out.rows().all(|mut row| row.nth(2).unwrap().0 == [200, 100, 50]));
    }

    #[test]
    fn a_ribbon_costs_no_more_than_its_middle() {
        let image = noise(1, 60_000);
        let out = resize_and_crop(&image, Axis::new(1, 224, 224), Axis::new(60_000, 224 * 60_000, 224), Filter::Bicubic);
        assert_eq!(out.dimensions(), (224, 224));
        let image = noise(60_000, 1);
        let out = resize_and_crop(&image, Axis::new(60_000, 224 * 60_000, 224), Axis::new(1, 224, 224), Filter::Bicubic);
        assert_eq!(out.dimensions(), (224, 224));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn cropping_early_changes_no_more_than_a_rounding(w in 1u32..400, h in 1u32..400, edge in 1u32..120, crop_w in 1u32..140, crop_h in 1u32..140) {
            let (wide, high) = if w <= h { (edge, edge * h / w) } else { (edge * w / h, edge) };
            let (across, down) = (Axis::new(w, wide.into(), crop_w), Axis::new(h, high.into(), crop_h));
            let image = noise(w, h);
            let (early, late) = (resize_and_crop(&image, across, down, Filter::Bicubic), in_full(&image, across, down));
            prop_assert!(early.iter().zip(late.iter()).all(|(a, b)| a.abs_diff(*b) <= 2));
        }
    }
}
