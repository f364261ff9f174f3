//! Caption files of every layout, told by their bytes.
#![no_main]

use clipcap::dataset::{ReadOptions, read_captions};
use clipcap_fuzz::on_disk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| on_disk("captions", bytes, |path| drop(read_captions(&[path.into()], &ReadOptions::default()))));
