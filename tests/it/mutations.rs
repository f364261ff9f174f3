//! Model files changed at random: nothing panics, nothing takes long, and what is read is the model it was.
//!
//! `CLIPCAP_MUTATIONS=10000 cargo test --release -- --ignored mutations` tries many more than every run does.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clipcap::models::Bundle;
use clipcap::models::import::{ClipSource, DecoderSource};
use clipcap::models::weights::WeightSource;

use crate::common::golden::Golden;
use crate::common::{clipcap, run};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}

/// Changes some bytes inside `range`, or cuts, repeats, drops or swaps stretches of it.
fn mutated(whole: &[u8], range: std::ops::Range<usize>, random: &mut Random) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let place = |random: &mut Random| range.start + random.below(range.len());
    match random.below(8) {
        0 => bytes.truncate(place(random)),
        1 => {
            let (at, length) = (place(random), 1 + random.below(40));
            let piece = bytes[at..(at + length).min(range.end)].to_vec();
            bytes.splice(at..at, piece);
        }
        2 => {
            let (at, length) = (place(random), 1 + random.below(40));
            bytes.drain(at..(at + length).min(range.end));
        }
        3 => {
            let (a, b) = (place(random), place(random));
            bytes.swap(a, b);
        }
        4 => {
            // A digit becomes another one.
            let at = place(random);
            if let Some(digit) = bytes[at..range.end].iter().position(u8::is_ascii_digit) {
                bytes[at + digit] = b'0' + random.below(10) as u8;
            }
        }
        _ => {
            for _ in 0..1 + random.below(4) {
                let at = place(random);
                bytes[at] ^= 1 << random.below(8);
            }
        }
    }
    bytes
}

/// Where a safetensors file describes its tensors; the numbers behind carry no checksum.
fn header(whole: &[u8]) -> std::ops::Range<usize> {
    0..8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize
}

/// What was read: the configuration, and a hash of every tensor the model has.
type Read = (String, String);

fn clip_of(path: &Path) -> Option<Read> {
    let clip = ClipSource::open(path).ok()?;
    clip.weights.as_ref()?;
    let out = tempfile::tempdir().unwrap();
    let facts = clip.part(0).ok()?.write(&out.path().join("model.safetensors")).ok()?;
    Some((format!("{:?} {:?}", clip.config, clip.preprocessor), facts.fingerprint))
}

fn gpt2_of(path: &Path) -> Option<Read> {
    let gpt2 = DecoderSource::open(path, false).ok()?;
    gpt2.weights.as_ref()?;
    let out = tempfile::tempdir().unwrap();
    let facts = gpt2.part(0).ok()?.write(&out.path().join("model.safetensors")).ok()?;
    Some((String::new(), facts.fingerprint))
}

fn bundle_of(path: &Path) -> Option<Read> {
    let bundle = Bundle::open(path).ok()?;
    bundle.verify().ok()?;
    Some((String::new(), bundle.fingerprint().into()))
}

/// A model, the file of it that is changed, and what may be read afterwards.
struct Case {
    name: &'static str,
    /// The folder or file that is given.
    model: PathBuf,
    file: &'static str,
    read: fn(&Path) -> Option<Read>,
    /// Only the same model, or an error.
    strict: bool,
    header_alone: bool,
}

fn try_all(count: usize) {
    let golden = Golden::own();
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let mut init = clipcap();
    init.args(["model", "init", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--prefix-len", "2", "--quiet", "--out"]).arg(&bundle);
    run(init.arg("--clip").arg(golden.path("siglip")), 0);
    let case = |name, model: PathBuf, file, read, strict, header_alone| Case { name, model, file, read, strict, header_alone };
    let cases = [
        case("OpenAI's archive", golden.path("openai_resnet.pt"), "", clip_of as fn(&Path) -> _, true, false),
        case("open_clip's weights", golden.path("open_clip"), "open_clip_model.safetensors", clip_of, true, true),
        case("open_clip's configuration", golden.path("open_clip"), "open_clip_config.json", clip_of, false, false),
        case("SigLIP's weights", golden.path("siglip"), "model.safetensors", clip_of, true, true),
        case("SigLIP's configuration", golden.path("siglip"), "config.json", clip_of, false, false),
        case("SigLIP's preprocessing", golden.path("siglip"), "preprocessor_config.json", clip_of, false, false),
        case("a .bin", golden.path("clip_hf"), "pytorch_model.bin", clip_of, true, false),
        case("a legacy .bin", golden.path("gpt2_legacy"), "pytorch_model.bin", gpt2_of, false, false),
        case("a vocabulary", golden.path("gpt2"), "vocab.txt", gpt2_of, true, false),
        case("a bundle's record", bundle.clone(), "clipcap.json", bundle_of, true, false),
        case("a bundle's weights", bundle.clone(), "clip/model.safetensors", bundle_of, true, false),
        case("a bundle's configuration", bundle.clone(), "clip/config.json", bundle_of, true, false),
        case("a bundle's graph", bundle, "image_encoder.onnx", bundle_of, true, false),
    ];
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for case in &cases {
        let copy = folder.path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        let (given, target) = match case.file {
            "" => (copy.join("model.pt"), copy.join("model.pt")),
            file => (copy.clone(), copy.join(file)),
        };
        fs::create_dir_all(&copy).unwrap();
        if case.file.is_empty() {
            fs::copy(&case.model, &given).unwrap();
        } else {
            // The .bin alone, not its better twin.
            let wanted = |name: &str| case.file != "pytorch_model.bin" || name != "model.safetensors";
            clipcap::files::copy_folder(&case.model, &copy, &wanted).unwrap();
        }
        let whole = fs::read(&target).unwrap();
        let original = (case.read)(&given).unwrap_or_else(|| panic!("{}: not read as it is", case.name));
        let range = if case.header_alone { header(&whole) } else { 0..whole.len() };
        let (mut same, mut refused, mut slowest) = (0, 0, Duration::ZERO);
        for number in 0..count {
            let bytes = mutated(&whole, range.clone(), &mut random);
            fs::write(&target, &bytes).unwrap();
            let started = Instant::now();
            let read = catch_unwind(AssertUnwindSafe(|| (case.read)(&given)));
            slowest = slowest.max(started.elapsed());
            let Ok(read) = read else { panic!("{}, change {number}: a panic", case.name) };
            match read {
                None => refused += 1,
                Some(read) if read == original => same += 1,
                Some(read) => {
                    let keep = std::env::temp_dir().join("clipcap-mutation");
                    fs::write(&keep, &bytes).unwrap();
                    assert!(
                        !case.strict,
                        "{}, change {number}: read as another model ({}), kept at {}",
                        case.name,
                        read.0,
                        keep.display()
                    );
                }
            }
        }
        eprintln!("{}: {count} changes, {refused} refused, {same} the same model, slowest {slowest:.2?}", case.name);
        assert!(slowest < Duration::from_secs(20), "{}: {slowest:?}", case.name);
        fs::write(&target, &whole).unwrap();
        assert_eq!((case.read)(&given), Some(original), "{}: put back", case.name);
    }
    // A shard index is content too: it leads nowhere but beside itself.
    let index = folder.path().join("model.safetensors.index.json");
    let text =
        br#"{"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "x.safetensors"}}"#;
    for _ in 0..count {
        fs::write(&index, mutated(text, 0..text.len(), &mut random)).unwrap();
        assert!(WeightSource::open(&index).is_err());
    }
}

#[test]
fn changed_model_files_are_refused_or_the_same_model() {
    try_all(60);
}

#[test]
#[ignore = "minutes; CLIPCAP_MUTATIONS says how many"]
fn many_changed_model_files_are_refused_or_the_same_model() {
    let total: usize = std::env::var("CLIPCAP_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    try_all(total.div_ceil(14));
}
