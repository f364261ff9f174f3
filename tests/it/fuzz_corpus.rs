//! The inputs that the fuzz targets begin from (`fuzz/corpus`), and damaged copies of them: every reader says what is wrong and goes on.

use std::fs;
use std::path::{Path, PathBuf};

use clipcap::dataset::{ReadOptions, read_captions};
use clipcap::image::{Limits, decode, header};
use clipcap::models::weights::{SafetensorsFile, WeightSource};
use clipcap::pipeline::Spec;

use crate::common::checkout;

/// Copies of each input with a few bytes changed, cut out or doubled.
const DAMAGED: u64 = 60;

/// The corpus of a target: names and bytes.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = checkout().join("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    files.iter().map(|path| (name(path), fs::read(path).unwrap())).filter(|(name, _)| name.starts_with("seed-")).collect()
}

/// A copy with some damage, the same for the same number.
fn damaged(bytes: &[u8], number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let mut copy = bytes.to_vec();
    for _ in 0..1 + next(4) {
        let at = next(copy.len());
        match next(5) {
            0 => copy.truncate(at),
            1 => copy.splice(at..at, vec![0xFF; 1 + next(9)]).for_each(drop),
            2 => copy.splice(at.., bytes[at.min(bytes.len())..].repeat(2)).for_each(drop),
            _ if copy.is_empty() => {}
            3 => copy[at] = [0, 0xFF, 0x7F, 0x80, b'\n'][next(5)],
            _ => copy[at] ^= 1 << next(8),
        }
    }
    copy
}

/// Reads every input and its damaged copies. A reader that panics or does not come back fails the test.
fn sweep(target: &str, wanted: usize, name: &str, read: &dyn Fn(&Path, &[u8]) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let mut good = vec![];
    for (seed, bytes) in corpus(target) {
        for number in 0..=DAMAGED {
            let copy = if number == 0 { bytes.clone() } else { damaged(&bytes, number) };
            fs::write(&path, &copy).unwrap();
            if read(&path, &copy) && number == 0 {
                good.push(seed.clone());
            }
        }
    }
    assert_eq!(good.len(), wanted, "inputs of fuzz/corpus/{target} that can be read: {good:?}");
}

#[test]
fn pictures() {
    let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
    sweep("image", 19, "picture", &|_, bytes| {
        let _ = header(bytes, &limits);
        decode(bytes, &limits, true).is_ok()
    });
}

#[test]
fn weights() {
    sweep("pickle", 2, "weights.pt", &|path, _| WeightSource::open(path).is_ok());
    sweep("safetensors", 3, "weights.safetensors", &|path, _| match SafetensorsFile::open(path) {
        Ok(file) => file.tensors().keys().all(|name| file.read_bytes(name).is_ok()),
        Err(_) => false,
    });
}

#[test]
fn caption_files_and_pipelines() {
    // Two are in encodings that somebody has to name.
    sweep("captions", 10, "captions", &|path, _| {
        read_captions(&[path.into()], &ReadOptions::default()).is_ok_and(|read| read.files[0].captions > 0)
    });
    sweep("pipeline", 4, "pipeline.toml", &|path, _| Spec::read(path, &[]).is_ok());
}
