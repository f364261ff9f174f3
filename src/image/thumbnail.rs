//! Small JPEGs of pictures, no larger than a given number of bytes.

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use super::resize::{Axis, Filter, resize_and_crop};

/// How large a thumbnail may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thumbnail {
    /// Pixels of the longer edge. A smaller picture keeps its size.
    pub edge: u32,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
    /// Bytes of the JPEG file: what would be larger is compressed more, and in the end made smaller.
    pub max_bytes: usize,
}

impl Thumbnail {
    /// The thumbnail as a JPEG file. The proportions are the picture's, up to a rounding; no edge is shorter than a pixel.
    pub fn of(&self, picture: &RgbImage) -> Vec<u8> {
        let (mut edge, mut quality) = (self.edge.max(1), self.quality.clamp(1, 100));
        let mut small = scaled(picture, edge);
        loop {
            let jpeg = encode(&small, quality);
            if jpeg.len() <= self.max_bytes || (edge <= 8 && quality <= MIN_QUALITY) {
                return jpeg;
            }
            if quality > MIN_QUALITY {
                quality = (quality - quality / 4).max(MIN_QUALITY);
            } else {
                edge = edge.min(small.width().max(small.height())) * 3 / 4;
                small = scaled(picture, edge);
            }
        }
    }
}

/// Below it, a smaller picture looks better than a coarser one.
const MIN_QUALITY: u8 = 30;

fn scaled(picture: &RgbImage, edge: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longer = width.max(height);
    if longer <= edge {
        return picture.clone();
    }
    let scale = |length: u32| (((f64::from(length) * f64::from(edge)) / f64::from(longer)).round() as u32).max(1);
    let axis = |length: u32| Axis::new(length, scale(length).into(), scale(length));
    resize_and_crop(picture, axis(width), axis(height), Filter::Bicubic)
}

fn encode(picture: &RgbImage, quality: u8) -> Vec<u8> {
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, quality);
    let written = encoder.write_image(picture, picture.width(), picture.height(), ExtendedColorType::Rgb8);
    written.expect("a picture of at most 65,535 pixels an edge, written to memory");
    jpeg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Limits, decode};

    fn size(picture: &RgbImage, thumbnail: &Thumbnail) -> (u32, u32, usize) {
        let jpeg = thumbnail.of(picture);
        let back = decode(&jpeg, &Limits::default(), false).unwrap();
        (back.width(), back.height(), jpeg.len())
    }

    #[test]
    fn proportions_stay_and_small_pictures_are_not_enlarged() {
        let thumbnail = Thumbnail { edge: 80, quality: 70, max_bytes: 1 << 20 };
        let of = |width, height| size(&RgbImage::from_pixel(width, height, image::Rgb([200, 30, 30])), &thumbnail);
        assert_eq!((of(400, 300).0, of(400, 300).1), (80, 60));
        assert_eq!((of(300, 400).0, of(300, 400).1), (60, 80));
        assert_eq!((of(20, 10).0, of(20, 10).1), (20, 10));
        assert_eq!((of(9000, 3).0, of(9000, 3).1), (80, 1));
    }

    #[test]
    fn a_picture_full_of_detail_fits_too() {
        let mut state = 1u32;
        let noise = RgbImage::from_fn(300, 200, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image::Rgb([(state >> 8) as u8, (state >> 16) as u8, (state >> 24) as u8])
        });
        let free = size(&noise, &Thumbnail { edge: 200, quality: 90, max_bytes: 1 << 20 });
        assert!(free.0 == 200 && free.2 > 20_000, "{free:?}");
        for max_bytes in [12_000, 3_000] {
            let (width, height, bytes) = size(&noise, &Thumbnail { edge: 200, quality: 90, max_bytes });
            assert!(bytes <= max_bytes && width > 20 && width.abs_diff(height * 3 / 2) < 3, "{width} x {height}: {bytes}");
        }
    }
}
