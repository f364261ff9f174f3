//! How long reading, hashing, decoding and preprocessing take. By hand, on one core:
//! `taskset -c 0 cargo test --release --test it image_speed -- --ignored --nocapture`.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use clipcap::image::{Limits, Preprocess, decode, decode_at, read};

/// The sum over steps of the least time each took, in ms: what the work costs when nobody else wants the core.
fn least(files: &[PathBuf], rounds: usize, full: bool) -> ([f64; 5], usize) {
    let preprocess = Preprocess::from_json("{}").unwrap();
    let mut out = vec![0.0; 3 * 224 * 224];
    let mut spent = [0.0; 5];
    let mut bytes_read = 0;
    for path in files {
        let mut best = [f64::INFINITY; 5];
        for _ in 0..rounds {
            let mut times = [Instant::now(); 6];
            let bytes = read(path, &Limits::default()).unwrap();
            times[1] = Instant::now();
            std::hint::black_box(clipcap::files::sha256_hex(&bytes));
            times[2] = Instant::now();
            let denominator = |width, height| if full { 1 } else { preprocess.denominator(width, height) };
            let picture = decode_at(&bytes, &Limits::default(), true, &denominator).unwrap();
            times[3] = Instant::now();
            let crop = preprocess.resize_and_crop_decoded(&picture);
            times[4] = Instant::now();
            preprocess.normalize_into(&crop, &mut out);
            times[5] = Instant::now();
            for (best, pair) in best.iter_mut().zip(times.windows(2)) {
                *best = best.min((pair[1] - pair[0]).as_secs_f64() * 1e3);
            }
            bytes_read += bytes.len();
        }
        spent.iter_mut().zip(best).for_each(|(sum, best)| *sum += best / files.len() as f64);
    }
    (spent, bytes_read / rounds / files.len())
}

#[test]
#[ignore = "a measurement, to be run by hand on a quiet machine"]
fn a_photo_takes_three_milliseconds() {
    let Some(folder) = crate::common::shared("data/photos") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let mut photos: Vec<_> = fs::read_dir(folder).unwrap().map(|item| item.unwrap().path()).collect();
    photos.sort();
    // 500 x 375, as the photos of Flickr30k are.
    let mut small = Vec::new();
    for (i, photo) in photos.iter().enumerate() {
        let pixels = decode(&fs::read(photo).unwrap(), &Limits::default(), true).unwrap();
        let resized = image::imageops::resize(&pixels, 500, 375, image::imageops::FilterType::Lanczos3);
        small.push(scratch.path().join(format!("{i:02}.jpg")));
        let file = fs::File::create(&small[i]).unwrap();
        image::codecs::jpeg::JpegEncoder::new_with_quality(file, 85).encode_image(&resized).unwrap();
    }
    let stored: Vec<_> = photos.iter().filter(|path| path.to_str().unwrap().contains("353913")).cloned().collect();
    // As a phone's camera takes it.
    let large = Preprocess::from_json(r#"{"size": {"width": 4000, "height": 3000}, "do_center_crop": false}"#).unwrap();
    let large = large.resize_and_crop(&decode(&fs::read(&stored[0]).unwrap(), &Limits::default(), true).unwrap());
    let enlarged = vec![scratch.path().join("large.jpg")];
    image::codecs::jpeg::JpegEncoder::new_with_quality(fs::File::create(&enlarged[0]).unwrap(), 90).encode_image(&large).unwrap();
    for (name, files, rounds, full) in [
        ("500x375, 4:4:4", &small, 40, false),
        ("353913.jpg, 500x375, 4:2:0", &stored, 40, false),
        ("photos", &photos, 40, false),
        ("4000x3000, 4:4:4", &enlarged, 10, false),
        ("4000x3000, 4:4:4, every pixel", &enlarged, 10, true),
    ] {
        let (ms, bytes) = least(files, rounds, full);
        let [read, hash, decode, resize, normalize] = ms;
        let total: f64 = ms.iter().sum();
        eprintln!(
            "{name}: {} KB: read {read:.3}, hash {hash:.3}, decode {decode:.3}, resize {resize:.3}, normalize {normalize:.3}: {total:.3} ms",
            bytes / 1024
        );
    }
}
