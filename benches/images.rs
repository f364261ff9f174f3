//! How long reading, hashing, decoding and preprocessing of a photo take: `cargo bench --bench images`, on one core with `taskset -c 0`.
//!
//! Photos are those of `../shared/data/photos` where that folder is there, and drawn ones in the sizes of Flickr30k and of a phone's
//! camera.

use std::path::{Path, PathBuf};

use clipcap::files::ContentHash;
use clipcap::image::{Decoded, Limits, Preprocess, decode_at, read};
use divan::{Bencher, black_box};
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

fn main() {
    divan::main();
}

/// What is measured: a drawn JPEG of some size.
const SIZES: [(u32, u32); 2] = [(500, 375), (4000, 3000)];

/// A JPEG with something to see everywhere.
fn drawn((width, height): (u32, u32)) -> Vec<u8> {
    let wave = |x: u32, y: u32, k: f32| (((x as f32 * k).sin() + (y as f32 * k * 0.7).cos()) * 60.0 + 128.0) as u8;
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb([wave(x, y, 0.02), wave(x, y, 0.09), wave(x, y, 0.4)]));
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 87).encode_image(&picture).expect("a picture in memory");
    bytes
}

fn photos() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/photos");
    std::fs::read_dir(folder).map_or(Vec::new(), |items| items.filter_map(|item| Some(item.ok()?.path())).collect())
}

fn preprocess() -> Preprocess {
    Preprocess::from_json("{}").expect("CLIP's own settings")
}

fn decoded(bytes: &[u8], preprocess: &Preprocess) -> Decoded {
    let denominator = |width, height| preprocess.denominator(width, height);
    decode_at(bytes, &Limits::default(), true, &denominator).expect("a good photo")
}

#[divan::bench(args = SIZES)]
fn hash(bencher: Bencher, size: (u32, u32)) {
    let bytes = drawn(size);
    bencher.bench(|| ContentHash::of(black_box(&bytes)));
}

#[divan::bench(args = SIZES)]
fn decode(bencher: Bencher, size: (u32, u32)) {
    let (bytes, preprocess) = (drawn(size), preprocess());
    bencher.bench(|| decoded(black_box(&bytes), &preprocess));
}

#[divan::bench(args = SIZES)]
fn decode_every_pixel(bencher: Bencher, size: (u32, u32)) {
    let bytes = drawn(size);
    bencher.bench(|| decode_at(black_box(&bytes), &Limits::default(), true, &|_, _| 1));
}

#[divan::bench(args = SIZES)]
fn resize_and_crop(bencher: Bencher, size: (u32, u32)) {
    let preprocess = preprocess();
    let picture = decoded(&drawn(size), &preprocess);
    bencher.bench(|| preprocess.resize_and_crop_decoded(black_box(&picture)));
}

#[divan::bench]
fn normalize(bencher: Bencher) {
    let preprocess = preprocess();
    let crop = preprocess.resize_and_crop_decoded(&decoded(&drawn(SIZES[0]), &preprocess));
    let mut out = vec![0.0; 3 * 224 * 224];
    bencher.bench_local(|| preprocess.normalize_into(black_box(&crop), &mut out));
}

/// All of it for each of the photos, read from the disk.
#[divan::bench]
fn photos_from_the_disk(bencher: Bencher) {
    let (photos, preprocess) = (photos(), preprocess());
    bencher.bench(|| {
        for path in &photos {
            let bytes = read(path, &Limits::default()).expect("a good photo");
            black_box(ContentHash::of(&*bytes));
            black_box(preprocess.resize_and_crop_decoded(&decoded(&bytes, &preprocess)));
        }
    });
}
