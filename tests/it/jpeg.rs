//! JPEG as everybody else's: Pillow's pixels to the bit, its orientation, and the reasons where there is no picture (`jpeg/damage.rs`).

use std::fs;
use std::path::Path;

use clipcap::files::ContentHash;
use clipcap::image::{Decoded, Failure, Limits, Preprocess, decode, decode_at, header};
use image::RgbImage;

use crate::common::golden::Golden;
use crate::common::{cases, shared};

mod damage;

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn full(bytes: &[u8]) -> Result<Decoded, Failure> {
    decode_at(bytes, &Limits::default(), true, &|_, _| 1)
}

/// Width, height and the first 16 digits of a hash of the RGB bytes.
type Pixels = (u32, u32, &'static str);

fn pixels(image: &RgbImage) -> (u32, u32, String) {
    (image.width(), image.height(), format!("{:.16}", ContentHash::of(image.as_raw())))
}

fn segment(marker: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16 + 2).to_be_bytes();
    [&[0xFF, marker], &length[..], payload].concat()
}

fn assert_pixels(folder: &Path, cases: &[(&str, Pixels)]) {
    for (name, (width, height, hash)) in cases {
        let bytes = fs::read(folder.join(name)).unwrap();
        let decoded = full(&bytes).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(pixels(&decoded.pixels), (*width, *height, hash.to_string()), "{name}");
        assert_eq!(decoded.damage, None, "{name}");
        assert_eq!(header(&bytes, &Limits::default()).unwrap().upright(), (*width, *height), "{name}");
    }
}

/// Hashes of what Pillow 13.0 (libjpeg-turbo 3.2) gives: `exif_transpose(image).convert("RGB")`.
#[test]
fn odd_files_have_pillows_pixels_to_the_bit() {
    let folder = cases("img");
    assert_pixels(
        &folder,
        &[
            ("jpeg_adobe5.jpg", (32, 32, "e0133cfa23fbf644")),
            ("jpeg_arithmetic.jpg", (32, 32, "a0203c290ea44474")),
            ("jpeg_chroma_finer.jpg", (32, 32, "0d93db9eea0feed7")),
            ("jpeg_cmyk_k_finer.jpg", (32, 32, "23bf665f63b1e279")),
            ("jpeg_jfif_adobe0.jpg", (32, 32, "e0133cfa23fbf644")),
            ("jpeg_jfif_ids_rgb.jpg", (32, 32, "e0133cfa23fbf644")),
            ("jpeg_mjpeg_no_dht.jpg", (32, 32, "a0203c290ea44474")),
            ("jpeg_sampling_311.jpg", (32, 32, "9a03465e775cc9b3")),
            ("jpeg_scans_420.jpg", (32, 32, "a0203c290ea44474")),
            ("jpeg_scans_440.jpg", (32, 32, "0d1a61cd1f247e30")),
            ("jpeg_scans_cb_first_444.jpg", (32, 32, "d50849b90c9087d6")),
            ("jpeg_scans_y_cbcr_420.jpg", (32, 32, "a0203c290ea44474")),
            ("jpeg_y11_cb21_cr11.jpg", (32, 32, "1be892e466aa1b9f")),
            ("jpeg_y12_c21.jpg", (32, 32, "c5ebd2f17f69a166")),
            ("jpeg_ycck_cb_finer.jpg", (32, 32, "833db61ee755817d")),
        ],
    );
}

#[test]
fn our_own_files_have_pillows_pixels_to_the_bit() {
    assert_pixels(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
        &[
            ("baseline_420.jpg", (52, 37, "7cf0bfe5d5f69b16")),
            ("baseline_444_optimized.jpg", (52, 37, "6ab2052ca131d504")),
            ("cmyk.jpg", (24, 16, "bca3482e897a5362")),
            ("flat.jpg", (9, 7, "378522ecb4c0a7b3")),
            ("grey_progressive.jpg", (52, 37, "e1d9e82483261869")),
            ("progressive_420.jpg", (52, 37, "7cf0bfe5d5f69b16")),
            ("restart.jpg", (52, 37, "170f5786b79feb3f")),
            ("restart_progressive_422.jpg", (52, 37, "daebe0bacad1dd8e")),
        ],
    );
}

#[test]
fn photos_have_pillows_pixels_to_the_bit() {
    let Some(folder) = shared("data/photos") else { return };
    assert_pixels(
        &folder,
        &[
            ("256063.jpg", (500, 332, "dfc58eeffa18f96b")),
            ("27860802.jpg", (500, 341, "45113ae6a4f51e08")),
            ("301246.jpg", (500, 312, "23dcab2abc9d64cf")),
            ("353913.jpg", (500, 375, "932993a5b42a08fd")),
            ("371897.jpg", (375, 500, "fd32fc9e76ca64c4")),
            ("371902.jpg", (500, 375, "329d483903b68b17")),
            ("COCO_val2014_000000060623.jpg", (640, 427, "78b15f258228ecf4")),
            ("COCO_val2014_000000165547.jpg", (500, 368, "478b606aefb9b8ec")),
            ("COCO_val2014_000000354533.jpg", (640, 310, "ea91f29613039ed8")),
            ("CONCEPTUAL_01.jpg", (1300, 1276, "7eafc3c9f268c8f9")),
            ("CONCEPTUAL_02.jpg", (860, 645, "4a4ff85c9a6b6fdb")),
            ("CONCEPTUAL_03.jpg", (450, 470, "c1d4eff7f1462c0a")),
            ("CONCEPTUAL_04.jpg", (640, 441, "d03704b6eefdd1d9")),
            ("CONCEPTUAL_05.jpg", (674, 614, "b9661ea994ff39d9")),
            ("CONCEPTUAL_06.jpg", (415, 470, "cd6d1d64e5184ab9")),
        ],
    );
}

#[test]
fn pictures_are_upright_however_they_say_so() {
    let folder = cases("img");
    let jpeg = (24, 40, "c578446d72e40866");
    let lossless = (24, 40, "9d8236bba57a6b1b");
    assert_pixels(
        &folder,
        &[
            ("exif_long_6.jpg", jpeg),
            ("exif_long_be_8.jpg", (24, 40, "2fbdd127f6d5c7d1")),
            ("exif_short_6_control.jpg", jpeg),
            ("exif_sshort_6.jpg", jpeg),
            ("exif_twice_6_3.jpg", jpeg),
            ("xmp_only_6.jpg", jpeg),
            ("exif_long_6.png", lossless),
            ("exif_prefixed_6.png", lossless),
            ("exif_prefixed_6.webp", lossless),
            ("raw_profile_text_6.png", lossless),
            ("raw_profile_ztxt_6.png", lossless),
            ("xmp_only_6.png", lossless),
        ],
    );
}

#[test]
fn large_photos_are_decoded_smaller_and_look_the_same() {
    let preprocess = Preprocess::from_json("{}").unwrap();
    let own = Golden::own().photos;
    let mut photos = vec![(own.clone(), "4.png", 2400, 1800, 4), (own, "2.png", 1001, 1333, 2)];
    if let Some(photographed) = shared("data/photos") {
        photos.extend([(photographed.clone(), "353913.jpg", 2400, 1800, 4), (photographed, "371897.jpg", 1001, 1333, 2)]);
    }
    for (folder, name, width, height, by) in photos {
        let photo = decode(&fs::read(folder.join(name)).unwrap(), &Limits::default(), true).unwrap();
        let size = format!(r#"{{"size": {{"width": {width}, "height": {height}}}, "do_center_crop": false}}"#);
        let large = Preprocess::from_json(&size).unwrap().resize_and_crop(&photo);
        let mut stored = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut stored, 90).encode_image(&large).unwrap();
        for orientation in [1, 6, 3, 8] {
            let mut file = stored.clone();
            let mut tiff = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
            tiff.extend([orientation, 0, 0, 0, 0, 0, 0]);
            file.splice(2..2, segment(0xE1, &tiff));
            let all = full(&file).unwrap();
            let less = decode_at(&file, &Limits::default(), true, &|w, h| preprocess.denominator(w, h)).unwrap();
            assert_eq!(all.full, less.full);
            assert_eq!(less.pixels.width(), all.pixels.width().div_ceil(by));
            let (exact, near) = (preprocess.resize_and_crop_decoded(&all), preprocess.resize_and_crop_decoded(&less));
            assert!(exact == preprocess.resize_and_crop(&all.pixels));
            let off: u64 = exact.iter().zip(near.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            let mean = off as f64 / exact.len() as f64;
            assert!(mean < 1.0, "{name}, orientation {orientation}: {mean} of 255 apart");
        }
    }
}
