//! Tests only: preprocessing beside what Pillow and Hugging Face's processor give for the same photos.

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use safetensors::SafeTensors;

use super::*;
use crate::testing::shared;

fn photos(folder: &Path) -> Vec<PathBuf> {
    let mut photos: Vec<_> = fs::read_dir(folder).unwrap().map(|item| item.unwrap().path()).collect();
    photos.sort();
    photos
}

/// Largest and mean difference.
fn differences(a: &RgbImage, b: &RgbImage) -> (u8, f64) {
    assert_eq!(a.dimensions(), b.dimensions());
    let each = || a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b));
    (each().max().unwrap(), each().map(f64::from).sum::<f64>() / a.len() as f64)
}

#[test]
fn photos_are_cropped_as_pillow_crops_them() {
    let (Some(folder), Some(expected)) = (shared("data/photos"), shared("golden/preprocess_224")) else { return };
    let preprocess = Preprocess::from_json("{}").unwrap();
    for photo in photos(&folder) {
        let name = photo.file_name().unwrap().to_str().unwrap();
        let ours = preprocess.resize_and_crop(&load(&photo, &Limits::default(), true).unwrap().pixels);
        let theirs = load(&expected.join(format!("{name}.png")), &Limits::default(), true).unwrap().pixels;
        let (max, mean) = differences(&ours, &theirs);
        eprintln!("{name}: max {max}, mean {mean:.4}");
        assert!(max <= 4 && mean < 0.4, "{name}: max {max}, mean {mean}");
    }
}

#[test]
fn pixel_values_are_hugging_faces() {
    let (Some(folder), Some(model), Some(expected)) =
        (shared("data/photos"), shared("golden/clip_hf"), shared("golden/clip_hf.expected.safetensors"))
    else {
        return;
    };
    let file = fs::read(expected).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let expected = tensors.tensor("pixel_values").unwrap();
    let preprocess = Preprocess::from_file(&model.join("preprocessor_config.json")).unwrap();
    let (width, height) = preprocess.output_size();
    let photos = photos(&folder);
    assert_eq!(expected.shape(), [photos.len(), 3, height as usize, width as usize]);
    let floats =
        |bytes: &[u8]| -> Vec<f32> { bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect() };
    let size = (3 * width * height) as usize;
    let mut ours = vec![0.0; size];
    for (photo, theirs) in photos.iter().zip(floats(expected.data()).chunks_exact(size)) {
        let pixels = load(photo, &Limits::default(), true).unwrap().pixels;
        preprocess.normalize_into(&preprocess.resize_and_crop(&pixels), &mut ours);
        // In steps of a byte: decoders differ by a few of them.
        let std = preprocess.settings().normalize.unwrap().std;
        let steps = ours.iter().zip(theirs).enumerate().map(|(i, (a, b))| (a - b).abs() * std[i / (size / 3)] * 255.0);
        let (max, sum) = steps.fold((0.0f32, 0.0f32), |(max, sum), step| (max.max(step), sum + step));
        assert!(max <= 4.01 && sum / (size as f32) < 0.4, "{}: max {max}, mean {}", photo.display(), sum / size as f32);
    }
}

#[test]
fn every_photo_cut_at_random_is_truncated() {
    let Some(folder) = shared("data/photos") else { return };
    let mut state = 42u64;
    for photo in photos(&folder) {
        let bytes = fs::read(&photo).unwrap();
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let length = 4 + (state >> 33) as usize % (bytes.len() - 6);
            let failure = load_bytes(&bytes[..length], &Limits::default(), true)
                .expect_err(&format!("{} cut at {length}", photo.display()));
            assert_eq!(failure.reason, Reason::Truncated, "{} cut at {length}: {failure}", photo.display());
        }
        let whole = decode(&bytes, &Limits::default(), true).unwrap();
        assert!(bytes.ends_with(&[0xFF, 0xD9]), "{}", photo.display());
        assert!(decode(&bytes[..bytes.len() - 2], &Limits::default(), true).unwrap() == whole, "{}", photo.display());
    }
}
