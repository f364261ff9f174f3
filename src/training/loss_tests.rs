use std::path::Path;

use super::loss::cross_entropy;
use crate::autodiff::gradients;
use crate::onnx::{DType, Graph};
use crate::runtime::{Device, Feed, Precision, Runtime, Session};

const M: usize = 5;
const C: usize = 4;
const V: usize = 7;

/// PyTorch's definition, in double precision: (mean, sum, count).
fn wanted(states: &[f64], table: &[f64], labels: &[i64], weights: &[f32], smoothing: f64) -> (f64, f64, i64) {
    let (mut sum, mut count) = (0.0, 0);
    for ((state, &label), &weight) in states.chunks(C).zip(labels).zip(weights) {
        if label < 0 {
            continue;
        }
        let logits: Vec<f64> = table.chunks(C).map(|row| row.iter().zip(state).map(|(a, b)| a * b).sum()).collect();
        let log_sum = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        let nll = log_sum - logits[label as usize];
        let uniform = logits.iter().map(|l| log_sum - l).sum::<f64>() / V as f64;
        sum += f64::from(weight) * ((1.0 - smoothing) * nll + smoothing * uniform);
        count += 1;
    }
    (sum / f64::from(count.max(1)), sum, i64::from(count))
}

fn numbers(count: usize, offset: usize) -> Vec<f32> {
    (offset..offset + count).map(|i| ((i as f64 * 0.618_033_988_75).fract() * 3.0 - 1.5) as f32).collect()
}

fn check(labels: [i64; M], smoothing: f64) {
    check_weighted(labels, None, smoothing);
}

fn check_weighted(labels: [i64; M], weights: Option<[f32; M]>, smoothing: f64) {
    let g = Graph::new("loss");
    let states = g.input("states", DType::F32, &[M.into(), C.into()]);
    let table = g.input("table", DType::F32, &[V.into(), C.into()]);
    let ids = g.input("labels", DType::I64, &[M.into()]);
    let input = weights.is_some().then(|| g.input("weights", DType::F32, &[M.into()]));
    let loss = cross_entropy(&g, states, table, ids, input, smoothing as f32);
    let found = gradients(&g, loss.mean, &[states, table]);
    g.output("mean", loss.mean);
    g.output("sum", loss.sum);
    g.output("count", loss.num_tokens);
    g.output("states.grad", found[0]);
    g.output("table.grad", found[1]);
    let runtime = Runtime::start(Device::Cpu, Precision::Fp32, Some(2)).unwrap();
    let mut session = Session::new(&runtime, "loss", &g.finish().unwrap().to_bytes(), Path::new("."), &[]).unwrap();
    let (states, table) = (numbers(M * C, 0), numbers(V * C, 50));
    let (m, c, v) = (M as i64, C as i64, V as i64);
    let shapes = [vec![m, c], vec![v, c], vec![m]];
    let mut feeds = vec![
        ("states", Feed::F32(&states, &shapes[0])),
        ("table", Feed::F32(&table, &shapes[1])),
        ("labels", Feed::I64(&labels, &shapes[2])),
    ];
    feeds.extend(weights.as_ref().map(|weights| ("weights", Feed::F32(weights, &shapes[2]))));
    let weights = weights.unwrap_or([1.0; M]);
    let outputs = session.run(&feeds).unwrap();
    let mut both: Vec<f64> = states.iter().chain(&table).map(|&x| f64::from(x)).collect();
    let at = |both: &[f64]| wanted(&both[..M * C], &both[M * C..], &labels, &weights, smoothing);
    let (mean, sum, count) = at(&both);
    let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 2e-6 * b.abs().max(1.0);
    assert!(near(outputs.f32("mean").unwrap()[0], mean));
    assert!(near(outputs.f32("sum").unwrap()[0], sum));
    assert_eq!(outputs.i64("count").unwrap()[0], count);
    let found = [outputs.f32("states.grad").unwrap(), outputs.f32("table.grad").unwrap()].concat();
    for (i, &found) in found.iter().enumerate() {
        let here = both[i];
        let mut value = |x: f64| {
            both[i] = x;
            at(&both).0
        };
        let slope = (value(here + 1e-5) - value(here - 1e-5)) / 2e-5;
        both[i] = here;
        assert!((f64::from(found) - slope).abs() < 2e-6, "{i}: {found} for {slope}");
    }
}

#[test]
fn loss_and_gradients_are_those_of_the_definition() {
    for smoothing in [0.0, 0.1, 0.6] {
        check([3, 0, 6, 6, 2], smoothing);
        check([-100, 4, 4, -1, 4], smoothing);
    }
}

#[test]
fn labels_count_by_their_weights_of_either_sign() {
    for smoothing in [0.0, 0.2] {
        check_weighted([3, 0, 6, 6, 2], Some([1.5, -0.75, 0.0, 2.0, -1.25]), smoothing);
        check_weighted([-1, 4, 4, -1, 4], Some([9.0, -0.5, 0.25, -9.0, 1.0]), smoothing);
    }
}

#[test]
fn without_any_label_the_loss_is_zero_and_nothing_moves() {
    check([-1; M], 0.0);
}
