//! PyTorch's files: the archive, the older form, and the pickle machine in both.
#![no_main]

use clipcap::models::weights::WeightSource;
use clipcap_fuzz::on_disk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| on_disk("weights.pt", bytes, |path| drop(WeightSource::open(path))));
