//! safetensors: the header and where it says tensors are.
#![no_main]

use clipcap::models::weights::SafetensorsFile;
use clipcap_fuzz::on_disk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| on_disk("weights.safetensors", bytes, |path| {
    if let Ok(file) = SafetensorsFile::open(path) {
        file.tensors().keys().take(4).for_each(|name| drop(file.read_f32(name)));
    }
}));
