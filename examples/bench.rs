use clipcap::models::{config::*, *};
use clipcap::runtime::*;
use std::path::Path;
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let folder = Path::new("/root/bench/full");
    let dev: Device = a[2].parse().unwrap();
    let prec: Precision = a[3].parse().unwrap();
    let rt = Runtime::start(dev, prec, Some(2)).unwrap();
    let reps: usize = a.get(4).map_or(3, |x| x.parse().unwrap());
    match a[1].as_str() {
        "clip" => {
            let c = ClipConfig::read(&folder.join("clip/config.json")).unwrap();
            let b = 32;
            let t = Instant::now();
            let mut e = ClipEncoder::load(&rt, folder, &c, b).unwrap();
            println!("load {:.2}s", t.elapsed().as_secs_f32());
            let px: Vec<f32> = (0..b * 3 * 224 * 224).map(|i| ((i * 7919 % 1000) as f32 / 500.0) - 1.0).collect();
            e.encode(&px, b).unwrap();
            for _ in 0..reps {
                let t = Instant::now();
                e.encode(&px, b).unwrap();
                println!("clip {dev} {prec} {:.3}s", t.elapsed().as_secs_f32());
            }
        }
        _ => {
            let c = Gpt2Config::read(&folder.join("gpt2/config.json")).unwrap();
            let t = Instant::now();
            let mut d = CachedDecoder::load(&rt, folder, &c, 10, 64, 67).unwrap();
            println!("load {:.2}s", t.elapsed().as_secs_f32());
            let px: Vec<f32> = (0..4 * 10 * 768).map(|i| ((i * 7919 % 1000) as f32 / 5000.0) - 0.1).collect();
            for _ in 0..reps {
                let t = Instant::now();
                d.prefill(&px, 4).unwrap();
                let tp = t.elapsed().as_secs_f32();
                for i in 0..20 {
                    d.start_row(i / 5).unwrap();
                }
                let ts = t.elapsed().as_secs_f32();
                for k in 0..16 {
                    let toks: Vec<u32> = (0..20).map(|i| 106 + i * 100 + k).collect();
                    d.step(&toks).unwrap();
                }
                println!("decode {dev} {prec} {:.3}s prefill {tp:.3} start {:.3}", t.elapsed().as_secs_f32(), ts - tp);
                d.gather_rows(&[]).unwrap();
            }
        }
    }
}
