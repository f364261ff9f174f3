//! Every rule against central differences, in the middle of a graph and scaled, so that one that drops what arrives from above fails.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::onnx::{DType, Shape};
use crate::runtime::{Device, Feed, Precision, Runtime, Session};

type Build = Box<dyn Fn(&Graph, &[Value]) -> Value>;

struct Case {
    name: &'static str,
    inputs: Vec<Vec<i64>>,
    build: Build,
}

fn case(name: &'static str, inputs: &[&[i64]], build: impl Fn(&Graph, &[Value]) -> Value + 'static) -> Case {
    Case { name, inputs: inputs.iter().map(|shape| shape.to_vec()).collect(), build: Box::new(build) }
}

fn ints(g: &Graph, values: &[i64], shape: &[i64]) -> Value {
    g.constant(DType::I64, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn cases() -> Vec<Case> {
    // Inputs lie between -1 and 1; where an operator wants positive numbers, they are moved.
    let positive = |g: &Graph, x: Value| g.add(x, g.floats(&[1.6], &[]));
    let two: &[&[i64]] = &[&[3, 4], &[3, 4]];
    let broadcast: &[&[i64]] = &[&[2, 3, 4], &[3, 1]];
    let bias: &[&[i64]] = &[&[2, 3, 4], &[4]];
    let (matrix, cube): (&[&[i64]], &[&[i64]]) = (&[&[3, 4]], &[&[2, 3, 4]]);
    let mut cases = vec![
        case("add", broadcast, |g, x| g.add(x[0], x[1])),
        case("add a bias", bias, |g, x| g.add(x[0], x[1])),
        case("add to itself", matrix, |g, x| g.add(x[0], x[0])),
        case("sub", broadcast, |g, x| g.sub(x[1], x[0])),
        case("mul", broadcast, |g, x| g.mul(x[0], x[1])),
        case("square", matrix, |g, x| g.mul(x[0], x[0])),
        case("div", broadcast, move |g, x| g.div(x[0], positive(g, x[1]))),
        case("div by a larger one", broadcast, move |g, x| g.div(x[1], positive(g, x[0]))),
        case("max", two, |g, x| g.max(x[0], x[1])),
        case("where", two, |g, x| g.select(g.greater(x[0], g.floats(&[0.0], &[])), x[0], x[1])),
        case("neg", matrix, |g, x| g.neg(x[0])),
        case("abs", matrix, |g, x| g.abs(x[0])),
        case("exp", matrix, |g, x| g.exp(x[0])),
        case("log", matrix, move |g, x| g.log(positive(g, x[0]))),
        case("sqrt", matrix, move |g, x| g.sqrt(positive(g, x[0]))),
        case("reciprocal", matrix, move |g, x| g.reciprocal(positive(g, x[0]))),
        case("tanh", matrix, |g, x| g.tanh(x[0])),
        case("sigmoid", matrix, |g, x| g.sigmoid(x[0])),
        case("erf", matrix, |g, x| g.erf(x[0])),
        case("cos", matrix, |g, x| g.cos(x[0])),
        case("sin", matrix, |g, x| g.sin(x[0])),
        case("clip", matrix, |g, x| g.clip(x[0], g.floats(&[-0.4], &[]), g.floats(&[0.5], &[]))),
        case("gelu", matrix, |g, x| g.gelu(g.scale(x[0], 2.0), false)),
        case("gelu_new", matrix, |g, x| g.gelu(g.scale(x[0], 2.0), true)),
        case("quick_gelu", matrix, |g, x| g.quick_gelu(x[0], 1.702)),
        case("softmax", cube, |g, x| g.softmax(x[0])),
        case("identity", matrix, |g, x| g.identity(x[0])),
        case("cast", matrix, |g, x| g.cast(g.cast(x[0], DType::F64), DType::F32)),
        case("detach", two, |g, x| g.mul(x[0], g.detach(g.add(x[1], g.floats(&[0.3], &[]))))),
        case("matmul", &[&[3, 4], &[4, 2]], |g, x| g.matmul(x[0], x[1])),
        case("matmul with weights", &[&[2, 3, 4], &[4, 2]], |g, x| g.matmul(x[0], x[1])),
        case("matmul of batches", &[&[2, 3, 4], &[2, 4, 2]], |g, x| g.matmul(x[0], x[1])),
        case("matmul, one side broadcast", &[&[3, 4], &[2, 4, 2]], |g, x| g.matmul(x[0], x[1])),
        case("conv over patches", &[&[2, 3, 4, 6], &[5, 3, 2, 2], &[5]], |g, x| g.conv(x[0], x[1], Some(x[2]), 2)),
        case("conv without bias", &[&[2, 3, 4, 6], &[5, 3, 2, 2]], |g, x| g.conv(x[0], x[1], None, 2)),
        case("layer norm", &[&[2, 3, 5], &[5], &[5]], |g, x| g.layer_normalization(x[0], x[1], x[2], 1e-5).0),
        case("sum", cube, |g, x| g.reduce_sum(x[0], &[1], true)),
        case("sum of two", cube, |g, x| g.reduce_sum(x[0], &[0, 2], false)),
        case("mean", cube, |g, x| g.reduce_mean(x[0], &[2], false)),
        case("greatest", cube, |g, x| g.reduce_max(x[0], &[2], true)),
        case("transpose", cube, |g, x| g.transpose(x[0], &[2, 0, 1])),
        case("reshape", cube, |g, x| g.reshape(x[0], &[6.into(), 4.into()])),
        case("expand", &[&[3, 1]], |g, x| g.expand(x[0], &[2.into(), 3.into(), 4.into()])),
        case("concat", &[&[2, 3], &[2, 2]], |g, x| g.concat(&[x[0], x[1], x[0]], 1)),
        case("split", &[&[2, 6]], |g, x| {
            let parts = g.split(x[0], 1, &[1, 3, 2]);
            g.concat(&[parts[2], parts[0]], 1)
        }),
        case("slice", cube, |g, x| g.slice(x[0], 1, 1.into(), 2.into())),
        case("slice from the start", cube, |g, x| g.slice(x[0], 2, 0.into(), 3.into())),
        case("gather", &[&[5, 3]], |g, x| g.gather(x[0], ints(g, &[4, 1, 1, 0, 4, 4], &[2, 3]), 0)),
        case("gather twice and multiply", &[&[5, 3]], |g, x| {
            let rows = g.mul(g.gather(x[0], ints(g, &[4, 1, 1], &[3]), 0), g.gather(x[0], ints(g, &[2, 2, 1], &[3]), 0));
            g.matmul(rows, g.transpose(x[0], &[1, 0]))
        }),
        case("gather elements", &[&[3, 4]], |g, x| g.gather_elements(x[0], ints(g, &[3, 3, 0, 1, 2, 2], &[3, 2]), 1)),
        case("scatter, adding", &[&[3, 4], &[3, 2]], |g, x| {
            g.scatter_elements(x[0], ints(g, &[3, 3, 0, 1, 2, 2], &[3, 2]), x[1], 1, Reduction::Add)
        }),
        case("scatter", &[&[3, 4], &[3, 2]], |g, x| {
            g.scatter_elements(x[0], ints(g, &[3, 1, 0, 1, 2, 0], &[3, 2]), x[1], 1, Reduction::None)
        }),
        case("a residual path", &[&[3, 4], &[4, 4]], |g, x| g.add(x[0], g.tanh(g.matmul(x[0], x[1])))),
    ];
    for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let shape = |swap: bool, a, b| if swap { [b, a] } else { [a, b] };
        let (a, b) = (shape(trans_a, 3, 4), shape(trans_b, 4, 2));
        let (a3, b3) = ([&[2], &a[..]].concat(), [&[2], &b[..]].concat());
        cases.push(case("gemm", &[&a, &b, &[2]], move |g, x| {
            let op = Op::Gemm { trans_a, trans_b, alpha: 0.6 };
            g.apply(op, &[x[0], x[1], x[2]])
        }));
        cases.push(case("gemm without bias", &[&a, &b], move |g, x| g.gemm(x[0], x[1], None, trans_a, trans_b)));
        cases.push(case("fused matmul", &[&a3, &b3], move |g, x| g.fused_matmul(x[0], x[1], trans_a, trans_b, 1.3)));
    }
    cases
}

/// Numbers between -1 and 1 without pattern, the nearest two of any 60 more than 0.006 apart.
fn numbers(count: usize, offset: usize) -> Vec<f32> {
    (offset..offset + count).map(|i| ((i as f64 * 0.618_033_988_75).fract() * 2.0 - 1.0) as f32).collect()
}

fn session(g: &Graph) -> Session {
    let runtime = Runtime::start(Device::Cpu, Precision::Fp32, Some(2)).unwrap();
    Session::new(&runtime, "test", &g.finish().unwrap().to_bytes(), Path::new("."), &[]).unwrap()
}

const STEP: f32 = 2e-3;

fn check(case: &Case, spelling: Spelling) {
    let g = Graph::new(case.name);
    let fixed = |shape: &[i64]| -> Shape { shape.iter().map(|&d| d.into()).collect() };
    let names: Vec<String> = (0..case.inputs.len()).map(|i| format!("x{i}")).collect();
    let inputs: Vec<Value> =
        names.iter().zip(&case.inputs).map(|(name, shape)| g.input(name, DType::F32, &fixed(shape))).collect();
    // Something before the operator and something behind it.
    let before: Vec<Value> = inputs.iter().map(|&x| g.scale(x, 0.9)).collect();
    let y = (case.build)(&g, &before);
    let shape: Vec<i64> = g.shape(y).iter().map(|d| d.as_fixed().unwrap()).collect();
    let weights = g.floats(&numbers(shape.iter().product::<i64>() as usize, 1000), &shape);
    let axes: Vec<usize> = (0..shape.len()).collect();
    let loss = g.scale(g.reduce_sum(g.mul(y, weights), &axes, false), 1.7);
    let parts = gradients_in_parts(&g, loss, &inputs, spelling);
    g.output("loss", loss);
    for (i, part) in parts.iter().enumerate() {
        g.output(&format!("grad{i}"), part.whole(&g, inputs[i]));
    }
    let mut session = session(&g);
    let mut data: Vec<Vec<f32>> =
        case.inputs.iter().enumerate().map(|(i, shape)| numbers(shape.iter().product::<i64>() as usize, 60 * i)).collect();
    let mut run = |data: &[Vec<f32>]| {
        let feeds: Vec<(&str, Feed<'_>)> =
            names.iter().zip(data).zip(&case.inputs).map(|((n, d), s)| (n.as_str(), Feed::F32(d, s))).collect();
        let outputs = session.run(&feeds).unwrap();
        let gradients: Vec<Vec<f32>> = (0..data.len()).map(|i| outputs.f32(&format!("grad{i}")).unwrap().to_vec()).collect();
        (f64::from(outputs.f32("loss").unwrap()[0]), gradients)
    };
    let (_, gradients) = run(&data);
    for i in 0..data.len() {
        let mut numeric = vec![];
        for j in 0..data[i].len() {
            let here = data[i][j];
            let mut at = |x: f32| {
                data[i][j] = x;
                run(&data).0
            };
            let difference = at(here + STEP) - at(here - STEP);
            data[i][j] = here;
            numeric.push(difference / f64::from((here + STEP) - (here - STEP)));
        }
        let largest = numeric.iter().fold(0.1f64, |m, v| m.max(v.abs()));
        for (found, wanted) in gradients[i].iter().zip(&numeric) {
            let off = (f64::from(*found) - wanted).abs() / largest;
            // float32 sums of a few numbers near 1, over twice the step.
            assert!(off < 2e-3, "{}: input {i}: {:?} and, numerically, {numeric:?}", case.name, gradients[i]);
        }
    }
}

#[test]
fn every_rule_agrees_with_central_differences() {
    for case in cases() {
        // Detached values have a slope that differentiation must not see.
        if case.name != "detach" {
            check(&case, Spelling::Statistics);
        }
    }
}

#[test]
fn layer_norm_needs_no_statistics() {
    for case in cases().iter().filter(|case| case.name == "layer norm") {
        check(case, Spelling::Recomputed);
    }
}

#[test]
fn blocks_that_are_computed_again_have_the_same_gradients() {
    let layers = |recompute: bool| {
        let g = Graph::new("layers");
        let mut x = g.input("x", DType::F32, &[3.into(), 4.into()]);
        let weights: Vec<Value> = (0..3).map(|n| g.input(&format!("w{n}"), DType::F32, &[4.into(), 4.into()])).collect();
        for (n, weight) in weights.iter().enumerate() {
            x = g.block(&format!("layer.{n}"), || g.add(x, g.tanh(g.matmul(g.softmax(x), *weight))));
        }
        let loss = g.reduce_sum(g.mul(x, x), &[0, 1], false);
        let blocks = if recompute { g.blocks() } else { vec![] };
        let gradients = gradients_recomputing(&g, loss, &weights, Spelling::Statistics, &blocks);
        for (n, gradient) in gradients.iter().enumerate() {
            g.output(&format!("d{n}"), gradient.whole(&g, weights[n]));
        }
        let count = g.nodes().iter().filter(|node| node.op == Op::Tanh).count();
        let names = ["x", "w0", "w1", "w2"];
        let values: Vec<Vec<f32>> = (0..4).map(|n| numbers(if n == 0 { 12 } else { 16 }, 20 * n)).collect();
        let shapes: Vec<[i64; 2]> = (0..4).map(|n| if n == 0 { [3, 4] } else { [4, 4] }).collect();
        let feeds: Vec<(&str, Feed<'_>)> =
            names.iter().zip(&values).zip(&shapes).map(|((name, values), shape)| (*name, Feed::F32(values, shape))).collect();
        let mut session = session(&g);
        let outputs = session.run(&feeds).unwrap();
        let found: Vec<Vec<f32>> = (0..3).map(|n| outputs.f32(&format!("d{n}")).unwrap().to_vec()).collect();
        (count, found)
    };
    let (plain, again) = (layers(false), layers(true));
    // The first block has nothing before it that was computed.
    assert_eq!((plain.0, again.0), (3, 5));
    assert_eq!(plain.1, again.1);
}

#[test]
fn the_cases_cover_every_operator_that_has_a_rule() {
    let mut covered = BTreeSet::new();
    for case in cases() {
        let g = Graph::new(case.name);
        let inputs: Vec<Value> = case
            .inputs
            .iter()
            .map(|shape| g.input("x", DType::F32, &shape.iter().map(|&d| d.into()).collect::<Vec<Dim>>()))
            .collect();
        (case.build)(&g, &inputs);
        covered.extend(g.nodes().iter().map(|node| node.op.name().1));
    }
    let ruled = "Abs Add Cast Clip Concat Conv Div Erf Exp Expand FusedMatMul Gather GatherElements Gelu Gemm Identity LayerNormalization Log \
                 MatMul Max Mul Neg QuickGelu Reciprocal ReduceMax ReduceMean ReduceSum Reshape ScatterElements Sigmoid Slice Softmax \
                 Split Sqrt Sub Tanh Transpose Where";
    let missing: Vec<&str> = ruled.split_whitespace().filter(|name| !covered.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_is_detached_or_unused_has_no_gradient() {
    let g = Graph::new("test");
    let [x, y, z] = ["x", "y", "z"].map(|name| g.input(name, DType::F32, &[2.into()]));
    let loss = g.reduce_sum(g.mul(x, g.detach(y)), &[0], false);
    let found = gradients(&g, loss, &[x, y, z]);
    for (name, value) in ["dx", "dy", "dz"].iter().zip(&found) {
        g.output(name, *value);
    }
    let mut session = session(&g);
    let feeds = [("x", Feed::F32(&[1.0, 2.0], &[2])), ("y", Feed::F32(&[3.0, 4.0], &[2])), ("z", Feed::F32(&[5.0, 6.0], &[2]))];
    let outputs = session.run(&feeds).unwrap();
    assert_eq!(outputs.f32("dx").unwrap(), [3.0, 4.0]);
    assert_eq!(outputs.f32("dy").unwrap(), [0.0, 0.0]);
    assert_eq!(outputs.f32("dz").unwrap(), [0.0, 0.0]);
}

#[test]
fn a_path_without_a_gradient_is_a_fault_with_a_name() {
    let g = Graph::new("test");
    let x = g.input("x", DType::F32, &[2.into()]);
    let loss = g.scope("h.0", || g.reduce_sum(g.round(x), &[0], false));
    gradients(&g, loss, &[x]);
    g.output("loss", loss);
    let error = g.finish().unwrap_err().to_string();
    assert!(error.contains("h.0/Round_0 has no gradient"), "{error}");

    let g = Graph::new("test");
    let [x, kernel] =
        [("x", [1, 1, 5, 4]), ("kernel", [1, 1, 2, 2])].map(|(name, shape)| g.input(name, DType::F32, &shape.map(Dim::from)));
    let loss = g.reduce_sum(g.conv(x, kernel, None, 2), &[0, 1, 2, 3], false);
    gradients(&g, loss, &[kernel]);
    g.output("loss", loss);
    assert!(g.finish().unwrap_err().to_string().contains("Conv_0 has no gradient"), "a row of pixels belongs to no patch");

    let g = Graph::new("test");
    let x = g.input("x", DType::F32, &[2.into()]);
    gradients(&g, x, &[x]);
    g.output("x", x);
    assert!(g.finish().is_err(), "two numbers are no loss");
}

#[test]
fn a_faulty_graph_is_not_differentiated() {
    let g = Graph::new("test");
    let x = g.input("x", DType::F32, &[2.into(), 3.into()]);
    let loss = g.reduce_sum(g.matmul(x, x), &[0, 1], false);
    gradients(&g, loss, &[x]);
    let error = g.finish().unwrap_err().to_string();
    assert!(error.contains("MatMul"), "{error}");
}

#[test]
fn rows_read_by_many_add_up_whatever_the_threads() {
    // Two threads and ids that repeat all the time: a scatter that races would lose some of them.
    let (rows, width, reads) = (7i64, 64i64, 3000i64);
    let g = Graph::new("test");
    let table = g.input("table", DType::F32, &[rows.into(), width.into()]);
    let ids = g.input("ids", DType::I64, &[reads.into()]);
    let loss = g.reduce_sum(g.gather(table, ids, 0), &[0, 1], false);
    g.output("grad", gradients(&g, loss, &[table])[0]);
    let mut session = session(&g);
    let ids: Vec<i64> = (0..reads).map(|i| (i * i + i / 3) % rows).collect();
    let count = |row: i64| ids.iter().filter(|&&id| id == row).count() as f32;
    let wanted: Vec<f32> = (0..rows).flat_map(|row| vec![count(row); width as usize]).collect();
    let values = vec![0.5; (rows * width) as usize];
    for _ in 0..100 {
        let outputs = session.run(&[("table", Feed::F32(&values, &[rows, width])), ("ids", Feed::I64(&ids, &[reads]))]).unwrap();
        assert_eq!(outputs.f32("grad").unwrap(), wanted);
    }
}
