//! JPEGs that are damaged, cut off, hostile or no pictures at all.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use clipcap::image::{Limits, Preprocess, Reason};
use clipcap::pipeline::{Content, Decode, Entry, ImageReading, Prepare, Prepared};

use super::{fixture, full, pixels, segment};
use crate::common::{cases, columns, run, tiny_bundle};

#[test]
fn what_is_no_picture_has_the_right_reason() {
    let folder = cases("img");
    let cases = [
        ("jpeg_half_eoi.jpg", Reason::Truncated, "ends before"),
        ("jpeg_half_cut_control.jpg", Reason::Truncated, "ends before"),
        ("jpeg_progressive_half_first_scan_eoi.jpg", Reason::Truncated, "ends before"),
        ("jpeg_only_y_scan_eoi.jpg", Reason::Truncated, "ends before"),
        ("jpeg_12bit.jpg", Reason::UnsupportedFormat, "12 bits"),
        ("jpeg_lossless.jpg", Reason::UnsupportedFormat, "lossless"),
        ("jpegls.jpg", Reason::UnsupportedFormat, "JPEG-LS"),
    ];
    for (name, reason, says) in cases {
        let failure = full(&fs::read(folder.join(name)).unwrap()).expect_err(name);
        assert_eq!(failure.reason, reason, "{name}: {failure}");
        assert!(failure.message.contains(says), "{name}: {failure}");
    }
}

/// The pixels are Pillow's, and the damage is told.
#[test]
fn a_tail_of_zeros_is_told() {
    let folder = cases("img");
    let cases = [
        ("jpeg_zero_tail_30.jpg", (64, 64, "c3a537c3c8601341")),
        ("jpeg_zero_tail_50.jpg", (64, 64, "aa62508d3e8240c8")),
        ("jpeg_zero_tail_70.jpg", (64, 64, "6d7aa2b757d33a40")),
    ];
    for (name, (width, height, hash)) in cases {
        let decoded = full(&fs::read(folder.join(name)).unwrap()).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(pixels(&decoded.pixels), (width, height, hash.to_string()), "{name}");
        let damage = decoded.damage.unwrap_or_else(|| panic!("{name}: taken for whole"));
        assert!(damage.reason == Reason::Truncated && damage.message.contains("zeros"), "{name}: {damage}");
    }
}

/// Wherever the zeros begin, with and without an end marker behind them.
#[test]
fn zeros_for_data_are_never_taken_for_a_picture() {
    for name in ["baseline_420.jpg", "baseline_444_optimized.jpg", "restart.jpg", "progressive_420.jpg", "grey_progressive.jpg"] {
        let bytes = fixture(name);
        let whole = full(&bytes).unwrap().pixels;
        let scan = bytes.windows(2).position(|marker| marker == [0xFF, 0xDA]).unwrap() + 14;
        let end = bytes.len() - 2;
        for from in (scan..end - 16).step_by(23) {
            for keep_end in [false, true] {
                let mut zeroed = bytes.clone();
                zeroed[from..if keep_end { end } else { end + 2 }].fill(0);
                match full(&zeroed) {
                    Ok(decoded) => assert!(decoded.damage.is_some(), "{name}, zeros from {from}, end marker {keep_end}"),
                    Err(failure) => assert!(
                        matches!(failure.reason, Reason::Truncated | Reason::Corrupt),
                        "{name}, zeros from {from}, end marker {keep_end}: {failure}"
                    ),
                }
            }
        }
        // Behind the picture they are padding.
        let mut padded = bytes[..end].to_vec();
        padded.extend([0; 100]);
        for mark in [&[][..], &[0xFF, 0xD9]] {
            let file = [&padded[..], mark].concat();
            let decoded = full(&file).unwrap_or_else(|failure| panic!("{name} padded: {failure}"));
            assert!(decoded.pixels == whole && decoded.damage.is_none(), "{name} padded: {:?}", decoded.damage);
        }
    }
}

/// A picture of which a part never changes has data of zeros, and is whole.
#[test]
fn a_flat_picture_is_not_a_damaged_one() {
    let decoded = full(&scans(2000, 0)).unwrap();
    assert_eq!((decoded.pixels.width(), decoded.damage), (2000, None));
}

#[test]
fn a_progressive_file_without_its_finest_scans_is_told() {
    let bytes = fixture("progressive_420.jpg");
    let scans: Vec<usize> = bytes.windows(2).enumerate().filter(|(_, pair)| pair == &[0xFF, 0xDA]).map(|(at, _)| at).collect();
    assert!(scans.len() > 4);
    for &end in &scans[1..] {
        // Tables may stand before the scan: what they belong to is not there.
        let cut = &bytes[..end];
        assert_eq!(full(cut).unwrap_err().reason, Reason::Truncated);
        let closed = [cut, &[0xFF, 0xD9]].concat();
        match full(&closed) {
            Ok(decoded) => assert_eq!(decoded.damage.unwrap().reason, Reason::Truncated),
            Err(failure) => assert_eq!(failure.reason, Reason::Truncated),
        }
    }
}

/// Baseline files of one channel in its own scan after another: ended by an end marker before the last.
#[test]
fn a_channel_that_never_comes_is_missed() {
    let folder = cases("img");
    for name in ["jpeg_scans_420.jpg", "jpeg_scans_440.jpg", "jpeg_scans_cb_first_444.jpg", "jpeg_scans_y_cbcr_420.jpg"] {
        let bytes = fs::read(folder.join(name)).unwrap();
        for end in bytes.windows(2).enumerate().filter(|(_, pair)| pair == &[0xFF, 0xDA]).map(|(at, _)| at).skip(1) {
            let closed = [&bytes[..end], &[0xFF, 0xD9]].concat();
            assert_eq!(full(&closed).unwrap_err().reason, Reason::Truncated, "{name} closed at {end}");
        }
    }
}

/// A grey progressive JPEG that says nothing in a bit per block, and then `count` times nothing at all in a few bytes.
fn scans(side: u16, count: usize) -> Vec<u8> {
    let blocks = usize::from(side.div_ceil(8)).pow(2);
    let mut one_code = [0; 18];
    one_code[1] = 1;
    let mut file = vec![0xFF, 0xD8];
    file.extend(segment(0xDB, &[&[0][..], &[1; 64]].concat()));
    let [high, low] = side.to_be_bytes();
    file.extend(segment(0xC2, &[8, high, low, high, low, 1, 1, 0x11, 0]));
    file.extend(segment(0xC4, &one_code));
    one_code[0] = 0x10;
    one_code[17] = 0xE0;
    file.extend(segment(0xC4, &one_code));
    file.extend(segment(0xDA, &[1, 1, 0, 0, 0, 0]));
    // A difference of nothing is the code 0; the last byte is filled up with ones.
    file.extend(std::iter::repeat_n(0, blocks / 8));
    if !blocks.is_multiple_of(8) {
        file.push(0xFF >> (blocks % 8));
    }
    // Runs of blocks without a coefficient: the code 0, and 14 bits of how many above 16,384.
    let mut bits = String::new();
    let mut left = blocks;
    while left > 0 {
        let run = left.clamp(16_384, 32_767);
        bits += &format!("0{:014b}", run - 16_384);
        left = left.saturating_sub(run);
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    let mut scan = segment(0xDA, &[1, 1, 0, 1, 63, 0]);
    for byte in bits.as_bytes().chunks(8) {
        let byte = u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap();
        scan.push(byte);
        if byte == 0xFF {
            scan.push(0);
        }
    }
    for _ in 0..count {
        file.extend(&scan);
    }
    if count == 0 {
        file.extend(scan);
    }
    file.extend([0xFF, 0xD9]);
    file
}

#[test]
fn scans_without_end_take_no_time() {
    for (side, count) in [(14_000, 2_000), (14_000, 500), (14_000, 99), (4_000, 2_000), (8, 2_000)] {
        let file = scans(side, count);
        let start = Instant::now();
        let result = full(&file);
        let took = start.elapsed();
        eprintln!("{side} x {side}, {count} scans, {} KB: {took:?}", file.len() / 1024);
        match result {
            Ok(decoded) => assert!(side == 8 && decoded.damage.is_none()),
            Err(failure) => assert!(side > 8 && failure.reason == Reason::TooLarge, "{side} x {side}, {count}: {failure}"),
        }
        // Two seconds on a machine that does nothing else.
        assert!(took < Duration::from_secs(10), "{side} x {side}, {count} scans: {took:?}");
    }
}

/// Photos enlarged, and turned every way: what is decoded smaller is the same picture at the same place.

#[test]
fn damage_fails_on_request() {
    let folder = cases("img");
    let prepared = |fail_damaged: bool, name: &str| {
        let preprocess = Preprocess::from_json("{}").unwrap();
        let decode = Decode::new(preprocess, ImageReading { fail_damaged, ..ImageReading::default() });
        let content = Content::File { path: folder.join(name), stat: None };
        decode.prepare(&Entry { image_path: name.into(), image_id: name.into(), content }, &mut |_| false)
    };
    assert!(matches!(prepared(false, "jpeg_zero_tail_50.jpg"), Prepared::Input { damaged: true, .. }));
    assert!(matches!(prepared(true, "jpeg_scans_420.jpg"), Prepared::Input { damaged: false, .. }));
    let Prepared::Failed { failure, sha256 } = prepared(true, "jpeg_zero_tail_50.jpg") else { panic!("not failed") };
    assert!(failure.reason == "truncated" && sha256.is_some(), "{failure:?}");
}

/// From the file to both tables, through embeddings too, and into the settings.
#[test]
fn tables_tell_damaged_images() {
    let cases = cases("img");
    let folder = tempfile::tempdir().unwrap();
    let (images, bundle) = (folder.path().join("images"), tiny_bundle(folder.path()));
    fs::create_dir(&images).unwrap();
    for name in ["jpeg_zero_tail_50.jpg", "jpeg_scans_420.jpg"] {
        fs::copy(cases.join(name), images.join(name)).unwrap();
    }
    let at = |name: &str| folder.path().join(name);
    let embed = |out: &str, flags: &[&str], status: i32| {
        let mut command = crate::common::clipcap();
        command.args(["embed", "--quiet"]).args(flags).arg("--images").arg(&images).arg("--model").arg(&bundle);
        run(command.arg("--out").arg(at(out)), status);
    };
    let flags = |table: &Path| -> Vec<(String, bool)> {
        let mut rows = vec![];
        for batch in clipcap::table::open(table, None).unwrap() {
            let batch = batch.unwrap();
            let names: &arrow::array::StringArray = batch.column_by_name("image_path").unwrap().as_any().downcast_ref().unwrap();
            let flags: &arrow::array::BooleanArray = batch.column_by_name("damaged").unwrap().as_any().downcast_ref().unwrap();
            rows.extend((0..batch.num_rows()).map(|row| (names.value(row).to_string(), flags.value(row))));
        }
        rows
    };
    let expected = [("jpeg_scans_420.jpg".to_string(), false), ("jpeg_zero_tail_50.jpg".to_string(), true)];
    embed("e", &[], 0);
    assert_eq!(flags(&at("e/part-00000.parquet")), expected);
    embed("npy", &["--format", "npy"], 0);
    assert_eq!(flags(&at("npy/metadata/metadata_0.parquet")), expected);
    // A run that is given again keeps what it had.
    embed("e", &[], 0);
    assert_eq!(flags(&at("e/part-00000.parquet")), expected);
    embed("strict", &["--fail-damaged"], 3);
    assert_eq!(flags(&at("strict/part-00000.parquet")), expected[..1]);
    assert_eq!(columns(&at(".clipcap/strict.errors.parquet"), &["reason"]), [["truncated"]]);

    let caption = |out: &str, flags: &[&str], status: i32| {
        let mut command = crate::common::clipcap();
        command.args(["caption", "--quiet", "--max-len", "3"]).args(flags).arg("--model").arg(&bundle);
        run(command.arg("--out").arg(at(out)), status);
        at(out)
    };
    let images = images.to_str().unwrap();
    assert_eq!(flags(&caption("c.parquet", &[images], 0)), expected);
    // Counted at the end, for people and for programs, and in the manifest.
    let mut summary = crate::common::clipcap();
    summary.args(["caption", images, "--max-len", "3", "--model"]).arg(&bundle).arg("--out").arg(at("told.parquet"));
    let told = run(&mut summary, 0);
    let told = String::from_utf8_lossy(&told.stdout) + String::from_utf8_lossy(&told.stderr);
    assert!(told.contains("1 of the captioned images is damaged"), "{told}");
    let told = run(summary.arg("--json"), 0);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&told.stdout).unwrap()["damaged"], 1);
    let manifest = fs::read(at(".clipcap/told.manifest.json")).unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&manifest).unwrap()["counts"]["damaged"], 1);
    assert_eq!(flags(&caption("from.parquet", &["--embeddings", at("e").to_str().unwrap()], 0)), expected);
    let csv = fs::read_to_string(caption("comma.csv", &[images], 0)).unwrap();
    let ends: Vec<&str> = csv.lines().map(|line| line.rsplit(',').next().unwrap()).collect();
    assert_eq!(ends, ["damaged", "false", "true"]);
    caption("c.parquet", &[images], 0);
    // Another way of decoding makes other rows: an older table is not gone on with in silence.
    let full = caption("c.parquet", &[images, "--full-decode"], 1);
    assert_eq!(flags(&full), expected);
}

/// Bytes changed anywhere, and many at once: pixels or a reason, and soon.
#[test]
fn mutated_jpegs_give_pixels_or_a_reason_soon() {
    let folder = cases("img");
    let mut files: Vec<Vec<u8>> = ["progressive_420.jpg", "restart.jpg", "cmyk.jpg"].map(fixture).into();
    for name in ["jpeg_arithmetic.jpg", "jpeg_scans_420.jpg", "jpeg_lossless.jpg", "jpeg_zero_tail_50.jpg"] {
        files.push(fs::read(folder.join(name)).unwrap());
    }
    files.push(scans(2_000, 3));
    let mut state = 7u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut slowest = Duration::ZERO;
    for bytes in &files {
        for _ in 0..60 {
            let mut bytes = bytes.clone();
            for _ in 0..1 + random(6) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] = random(256) as u8,
                    1 => bytes.truncate(at.max(4)),
                    _ => {
                        let end = (at + random(200)).min(bytes.len());
                        bytes.drain(at..end);
                        bytes.resize(bytes.len().max(4), 0);
                    }
                }
            }
            let start = Instant::now();
            if let Ok(decoded) = full(&bytes) {
                assert!(decoded.pixels.len() as u64 <= Limits::default().max_pixels * 3);
            }
            slowest = slowest.max(start.elapsed());
        }
    }
    eprintln!("slowest: {slowest:?}");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
}
