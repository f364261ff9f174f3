use std::path::Path;

use crate::onnx::{DType, Graph, Value};
use crate::runtime::{Device, InPlace, Precision, Runtime, Session};

fn session(threads: usize, build: impl FnOnce(&Graph)) -> Session {
    let runtime = Runtime::start(Device::Cpu, Precision::Int8, Some(threads)).unwrap();
    let g = Graph::new("test");
    build(&g);
    Session::new(&runtime, "test", &g.finish().unwrap().to_bytes(), Path::new("."), &[]).unwrap()
}

/// Numbers in -1..1 that any program can make again.
fn pattern(seed: u32, count: usize) -> Vec<f32> {
    let number = |i: u32| f32::from(((i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) >> 16) as u16);
    (0..count as u32).map(|i| number(i) / 32_768.0 - 1.0).collect()
}

/// Whose operators.
#[derive(Debug, Clone, Copy)]
enum By {
    /// This program's, the product ONNX Runtime's.
    Own,
    /// This program's with the processor's dot products, where it has them.
    Dots,
    Others,
}

/// `x` [M, K] times `weight` [K, N] in 8 bits with a bias.
fn product(by: By, threads: usize, x: &[f32], [rows, inputs, outputs]: [usize; 3]) -> Vec<f32> {
    let session = session(threads, |g| {
        let [k, n] = [inputs as i64, outputs as i64];
        let x = g.input("x", DType::F32, &["rows".into(), k.into()]);
        let numbers = pattern(3, inputs * outputs).iter().map(|w| (w * 127.0) as i8 as u8).collect();
        let weight = g.constant(DType::I8, &[k, n], numbers);
        let (scales, bias) = (g.floats(&pattern(4, outputs), &[n]), g.floats(&pattern(5, outputs), &[n]));
        let y: Value = match by {
            By::Own => g.int8_product_in_own(x, weight, scales, Some(bias), false),
            By::Dots => g.int8_product_in_own(x, weight, scales, Some(bias), super::has_int8_products()),
            By::Others => g.add(g.int8_product(x, weight, scales), bias),
        };
        g.output("y", y);
    });
    let (mut x, mut y) = (x.to_vec(), vec![0.0; rows * outputs]);
    let input = InPlace::f32("x", &mut x, &[rows as i64, inputs as i64]).unwrap();
    session.run_in_place(&[input], &mut [InPlace::f32("y", &mut y, &[rows as i64, outputs as i64]).unwrap()]).unwrap();
    y
}

#[test]
fn rows_are_rounded_to_the_bytes_of_onnx_runtimes_own_operators() {
    for (rows, inputs, outputs) in [(1, 8, 4), (7, 33, 5), (40, 96, 50), (9, 130, 145), (203, 4100, 49)] {
        let mut x = pattern(1, rows * inputs);
        // A row of zeros, one of large numbers, and halves, which go to the even number.
        x[..inputs].fill(0.0);
        x[(rows - 1) * inputs..].iter_mut().for_each(|x| *x *= 1e6);
        if rows > 2 {
            (0..inputs).for_each(|i| x[inputs + i] = if i == 0 { 127.0 } else { i as f32 - 0.5 });
        }
        let [own, dots, others] = [By::Own, By::Dots, By::Others].map(|by| product(by, 2, &x, [rows, inputs, outputs]));
        assert_eq!(own, others, "{rows} rows of {inputs}");
        assert_eq!(dots, others, "{rows} rows of {inputs} by dot products");
    }
}

#[test]
fn a_rows_bytes_are_the_same_alone_and_by_any_number_of_threads() {
    let [rows, inputs, outputs] = [9, 40, 16];
    let x = pattern(2, rows * inputs);
    for by in [By::Own, By::Dots] {
        let all = product(by, 1, &x, [rows, inputs, outputs]);
        assert_eq!(all, product(by, 3, &x, [rows, inputs, outputs]));
        for (row, wanted) in all.chunks(outputs).enumerate() {
            assert_eq!(product(by, 2, &x[row * inputs..][..inputs], [1, inputs, outputs]), wanted, "row {row}, {by:?}");
        }
    }
}

#[test]
fn sessions_made_at_the_same_moment_all_have_the_operators() {
    let x = pattern(7, 16);
    let wanted = product(By::Dots, 1, &x, [1, 16, 4]);
    std::thread::scope(|scope| {
        let made: Vec<_> = (0..8).map(|_| scope.spawn(|| product(By::Dots, 1, &x, [1, 16, 4]))).collect();
        made.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), wanted));
    });
}

#[test]
fn what_is_no_number_stays_none() {
    let mut x = pattern(6, 2 * 16);
    x[3] = f32::NAN;
    for by in [By::Own, By::Dots] {
        let y = product(by, 1, &x, [2, 16, 4]);
        assert!(y[..4].iter().all(|y| y.is_nan()) && y[4..].iter().all(|y| y.is_finite()), "{y:?}");
    }
}

/// Sizes of an attention: rows, positions of this run, heads, key-value heads, positions of a cache, width of a head.
type Sizes = [usize; 6];

/// Attended [B, S, H D] and the caches after it; `lasts` are the rows' last positions.
fn attention(own: bool, threads: usize, sizes: Sizes, lasts: &[i32], [qkv, past]: [&[Vec<f32>]; 2]) -> [Vec<f32>; 3] {
    let [b, s, h, g_, m, d] = sizes.map(|n| n as i64);
    let cache = if own { [b, 1, m, g_ * d] } else { [b, g_, m, d] };
    let session = session(threads, |g| {
        let batch = || "batch".into();
        let queries = g.input("q", DType::F32, &[batch(), s.into(), (h * d).into()]);
        let [k, v] = ["k", "v"].map(|name| g.input(name, DType::F32, &[batch(), s.into(), (g_ * d).into()]));
        let cache =
            ["pk", "pv"].map(|name| g.input(name, DType::F32, &[batch(), cache[1].into(), cache[2].into(), cache[3].into()]));
        let lengths = g.input("lengths", DType::I32, &[batch()]);
        let total = g.input("total", DType::I32, &[1.into()]);
        let scale = (d as f32).powf(-0.5);
        let outputs = match own {
            true => {
                let prefix = ["xk", "xv"].map(|name| g.input(name, DType::F32, &[1.into(), 1.into(), 2.into(), (g_ * d).into()]));
                let owners = g.input("owners", DType::I32, &[batch()]);
                g.cached_attention([queries, k, v], cache, lengths, prefix, owners, [h, g_], scale)
            }
            false => g.group_query_attention([queries, k, v], cache, [lengths, total], [h, g_], scale),
        };
        ["y", "nk", "nv"].iter().zip(outputs).for_each(|(name, output)| g.output(name, output));
    });
    let [mut q, mut k, mut v] = [0, 1, 2].map(|i| qkv[i].clone());
    let turned = |cache: &[f32], [outer, inner]: [usize; 2]| -> Vec<f32> {
        let [row, d] = [outer * inner * sizes[5], sizes[5]];
        let of_row = |row: &[f32]| {
            (0..inner).flat_map(|i| (0..outer).flat_map(move |o| row[(o * inner + i) * d..][..d].to_vec())).collect::<Vec<_>>()
        };
        cache.chunks(row).flat_map(of_row).collect()
    };
    // As [B, G, M, D] outside.
    let [groups, positions] = [sizes[3], sizes[4]];
    let [mut pk, mut pv] = [0, 1].map(|i| if own { turned(&past[i], [groups, positions]) } else { past[i].clone() });
    let (mut lasts, mut total) = (lasts.to_vec(), [lasts.iter().max().unwrap() + 1]);
    let mut y = vec![0.0; q.len()];
    let mut inputs = vec![
        InPlace::f32("q", &mut q, &[b, s, h * d]).unwrap(),
        InPlace::f32("k", &mut k, &[b, s, g_ * d]).unwrap(),
        InPlace::f32("v", &mut v, &[b, s, g_ * d]).unwrap(),
        InPlace::i32("lengths", &mut lasts, &[b]).unwrap(),
    ];
    let (mut prefixes, mut owners) =
        ([vec![9.0; 2 * sizes[3] * sizes[5]], vec![9.0; 2 * sizes[3] * sizes[5]]], vec![-1; sizes[0]]);
    match own {
        true => {
            inputs.push(InPlace::i32("owners", &mut owners, &[b]).unwrap());
            let named = ["xk", "xv"].into_iter().zip(&mut prefixes);
            inputs.extend(named.map(|(name, prefix)| InPlace::f32(name, prefix, &[1, 1, 2, g_ * d]).unwrap()));
        }
        false => inputs.push(InPlace::i32("total", &mut total, &[1]).unwrap()),
    }
    let mut outputs = vec![InPlace::f32("y", &mut y, &[b, s, h * d]).unwrap()];
    for (past, present, memory) in [("pk", "nk", pk.as_mut_ptr()), ("pv", "nv", pv.as_mut_ptr())] {
        // SAFETY: the caches have that shape and outlive the run.
        unsafe {
            inputs.push(InPlace::raw_f32(past, memory, &cache).unwrap());
            outputs.push(InPlace::raw_f32(present, memory, &cache).unwrap());
        }
    }
    session.run_in_place(&inputs, &mut outputs).unwrap();
    drop((inputs, outputs));
    let back = |cache: Vec<f32>| if own { turned(&cache, [positions, groups]) } else { cache };
    [y, back(pk), back(pv)]
}

fn numbers([b, s, h, g, m, d]: Sizes) -> [Vec<Vec<f32>>; 2] {
    let qkv = vec![pattern(1, b * s * h * d), pattern(2, b * s * g * d), pattern(3, b * s * g * d)];
    [qkv, vec![pattern(4, b * g * m * d), pattern(5, b * g * m * d)]]
}

#[test]
fn attention_is_onnx_runtimes_over_rows_of_any_length() {
    // A step, a prefix, keys that queries share, and more positions than scores have room for on the stack.
    for (sizes, lasts) in [
        ([3, 1, 4, 4, 20, 64], vec![0, 7, 19]),
        ([2, 5, 3, 3, 9, 8], vec![4, 4]),
        ([2, 1, 6, 2, 12, 24], vec![3, 11]),
        ([1, 1, 2, 2, 300, 16], vec![250]),
    ] {
        let [qkv, past] = numbers(sizes);
        let [own, others] = [true, false].map(|own| attention(own, 2, sizes, &lasts, [&qkv, &past]));
        let difference = own[0].iter().zip(&others[0]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(difference < 1e-5, "{sizes:?}: {difference}");
        let [_, _, _, groups, length, width] = sizes;
        for (own, others) in own[1..].iter().zip(&others[1..]) {
            for (unit, (own, others)) in own.chunks(length * width).zip(others.chunks(length * width)).enumerate() {
                let used = (lasts[unit / groups] as usize + 1) * width;
                assert_eq!(own[..used], others[..used], "{sizes:?}");
            }
        }
    }
}

#[test]
fn an_attended_row_is_the_same_alone_and_by_any_number_of_threads() {
    let sizes = [4, 1, 4, 4, 20, 64];
    let (lasts, [qkv, past]) = ([3, 19, 8, 11], numbers(sizes));
    let all = attention(true, 1, sizes, &lasts, [&qkv, &past]);
    assert_eq!(all, attention(true, 3, sizes, &lasts, [&qkv, &past]));
    for row in 0..4 {
        let of =
            |tensors: &[Vec<f32>]| tensors.iter().map(|t| t[t.len() / 4 * row..][..t.len() / 4].to_vec()).collect::<Vec<_>>();
        let alone = attention(true, 2, [1, 1, 4, 4, 20, 64], &lasts[row..=row], [&of(&qkv), &of(&past)]);
        assert_eq!(alone[0], all[0][row * 256..][..256], "row {row}");
    }
}

/// As [`attention`] with the first `prefix` positions of each row's past in a place that it is told of, the last row's first; `in_one`: queries, keys
/// and values in one tensor.
fn attention_behind(prefix: usize, in_one: bool, sizes: Sizes, lasts: &[i32], [qkv, past]: [&[Vec<f32>]; 2]) -> Vec<f32> {
    let [rows, sequence, heads, groups, length, head] = sizes;
    let (width, cached) = (heads * head, groups * head);
    let [b, s, h, g_, m, d] = sizes.map(|n| n as i64);
    let (own_length, all) = (m - prefix as i64, (h + 2 * g_) * d);
    let session = session(2, |g| {
        let batch = || "batch".into();
        let widths = if in_one { vec![("q", all)] } else { vec![("q", h * d), ("k", g_ * d), ("v", g_ * d)] };
        let inputs: Vec<Value> =
            widths.iter().map(|(name, width)| g.input(name, DType::F32, &[batch(), s.into(), (*width).into()])).collect();
        let qkv = match inputs[..] {
            [all] => {
                let parts = g.split(all, 2, &[h * d, g_ * d, g_ * d]);
                let shape = |heads: i64| [batch(), s.into(), heads.into(), d.into()];
                let parts = [(0, h), (1, g_), (2, g_)].map(|(at, heads)| (g.reshape(parts[at], &shape(heads)), heads));
                parts.map(|(part, heads)| g.reshape(part, &[batch(), s.into(), (heads * d).into()]))
            }
            _ => [inputs[0], inputs[1], inputs[2]],
        };
        let cache = |name: &str, rows: i64, length: i64| {
            g.input(name, DType::F32, &[rows.into(), 1.into(), length.into(), (g_ * d).into()])
        };
        let [own, before] =
            [["pk", "pv"].map(|name| cache(name, b, own_length)), ["xk", "xv"].map(|name| cache(name, b, prefix as i64))];
        let [lengths, owners] = ["lengths", "owners"].map(|name| g.input(name, DType::I32, &[batch()]));
        let outputs = g.cached_attention(qkv, own, lengths, before, owners, [h, g_], (d as f32).powf(-0.5));
        ["y", "nk", "nv"].iter().zip(outputs).for_each(|(name, output)| g.output(name, output));
    });
    // A position's numbers of [B, G, M, D].
    let position = |past: &[f32], row: usize, position: usize| -> Vec<f32> {
        (0..groups).flat_map(|group| past[((row * groups + group) * length + position) * head..][..head].to_vec()).collect()
    };
    let placed = |past: &[f32], rows: &mut dyn Iterator<Item = usize>, from: usize, to: usize| -> Vec<f32> {
        rows.flat_map(|row| (from..to).flat_map(move |at| position(past, row, at))).collect()
    };
    let mut own = [0, 1].map(|i| placed(&past[i], &mut (0..rows), prefix, length));
    let mut before = [0, 1].map(|i| placed(&past[i], &mut (0..rows).rev(), 0, prefix));
    let mut owners: Vec<i32> = (0..rows as i32).rev().collect();
    let mut lasts: Vec<i32> = lasts.iter().map(|last| last - prefix as i32).collect();
    let mut qkv: Vec<Vec<f32>> = match in_one {
        false => qkv.to_vec(),
        true => {
            let at = |x: &[f32], width: usize, number: usize| x[number * width..][..width].to_vec();
            let of = |number| [at(&qkv[0], width, number), at(&qkv[1], cached, number), at(&qkv[2], cached, number)].concat();
            vec![(0..rows * sequence).flat_map(of).collect()]
        }
    };
    let mut y = vec![0.0; rows * sequence * width];
    let mut inputs = vec![];
    for (name, x) in ["q", "k", "v"].into_iter().zip(&mut qkv) {
        let width = x.len() as i64 / (b * s);
        inputs.push(InPlace::f32(name, x, &[b, s, width]).unwrap());
    }
    inputs.push(InPlace::i32("lengths", &mut lasts, &[b]).unwrap());
    inputs.push(InPlace::i32("owners", &mut owners, &[b]).unwrap());
    for (name, before) in ["xk", "xv"].into_iter().zip(&mut before) {
        inputs.push(InPlace::f32(name, before, &[b, 1, prefix as i64, g_ * d]).unwrap());
    }
    let mut outputs = vec![InPlace::f32("y", &mut y, &[b, s, h * d]).unwrap()];
    for ((past, present), own) in [("pk", "nk"), ("pv", "nv")].into_iter().zip(&mut own) {
        // SAFETY: the caches have that shape and outlive the run.
        unsafe {
            inputs.push(InPlace::raw_f32(past, own.as_mut_ptr(), &[b, 1, own_length, g_ * d]).unwrap());
            outputs.push(InPlace::raw_f32(present, own.as_mut_ptr(), &[b, 1, own_length, g_ * d]).unwrap());
        }
    }
    session.run_in_place(&inputs, &mut outputs).unwrap();
    drop((inputs, outputs));
    y
}

#[test]
fn what_rows_begin_with_may_be_elsewhere_and_what_is_asked_in_one() {
    // Fewer rows than make one task each, more, and keys that queries share.
    for (sizes, lasts, prefix) in [
        ([3, 1, 4, 4, 20, 64], vec![5, 7, 19], 5),
        ([2, 3, 3, 3, 9, 8], vec![7, 8], 4),
        ([9, 1, 6, 2, 12, 24], vec![3, 11, 4, 5, 6, 7, 8, 9, 10], 3),
    ] {
        let [qkv, past] = numbers(sizes);
        let wanted = &attention(true, 2, sizes, &lasts, [&qkv, &past])[0];
        for (prefix, in_one) in [(prefix, false), (prefix, true), (1, true)] {
            let found = attention_behind(prefix, in_one, sizes, &lasts, [&qkv, &past]);
            assert_eq!(&found, wanted, "{sizes:?} behind {prefix}, in one: {in_one}");
        }
    }
}
