use super::*;

fn run(program: &[u8]) -> Result<(Arena, Id), PickleError> {
    load(&mut PickleReader::new(program, 1 << 24), false)
}

fn refused(program: &[u8]) -> String {
    match run(program) {
        Ok((arena, id)) => panic!("it loaded: {:?}", arena.get(id)),
        Err(error) => error.to_string(),
    }
}

/// A text object.
fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn int(value: i32) -> Vec<u8> {
    [b"J", &value.to_le_bytes()[..]].concat()
}

/// A tensor of a float storage `0` of 6 elements.
fn tensor(offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let tuple = |values: &[i32]| [b"(", &values.iter().flat_map(|&v| int(v)).collect::<Vec<u8>>()[..], b"t"].concat();
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        int(6),
        b"tQ".to_vec(),
        int(offset),
        tuple(shape),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

#[test]
fn values_of_every_kind_load() {
    let (arena, id) = run(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00(K\x07M\x01\x02I01\nI-5\nL12L\nNG\x00\x00\x00\x00\x00\x00\x00\x00\x8a\x01\xfft.").unwrap();
    let Object::Tuple(items) = arena.get(id) else { panic!() };
    let items: Vec<&Object> = items.iter().map(|&id| arena.get(id)).collect();
    let wanted = [
        Object::Int(7),
        Object::Int(513),
        Object::Bool(true),
        Object::Int(-5),
        Object::Int(12),
        Object::None,
        Object::Float,
        Object::Int(-1),
    ];
    assert_eq!(items, wanted.iter().collect::<Vec<_>>());
    let (arena, id) = run(b"}(X\x01\x00\x00\x00aK\x01\x8c\x01bK\x02u.").unwrap();
    assert_eq!(arena.items(id).unwrap().len(), 2);
    let (arena, id) = run(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.").unwrap();
    assert!(matches!(arena.get(id), Object::BigInt(_)));
}

#[test]
fn a_tensor_loads() {
    let (arena, id) = run(&[tensor(0, &[2, 3], &[3, 1]), b".".to_vec()].concat()).unwrap();
    let Object::Tensor(tensor) = arena.get(id) else { panic!() };
    assert_eq!((tensor.shape.as_slice(), tensor.strides.as_slice(), tensor.storage.numel), (&[2, 3][..], &[3, 1][..], 6));
}

#[test]
fn names_off_the_list_are_refused_by_name_and_nothing_runs() {
    for (program, name) in [
        (&b"cos\nsystem\n(X\x04\x00\x00\x00echotR."[..], "os.system"),
        (b"cposix\nsystem\n(X\x02\x00\x00\x00idtR.", "posix.system"),
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "builtins.eval"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"(X\x02\x00\x00\x00idios\nsystem\n.", "os.system"),
        (b"c__torch__.evil\nModule\n)\x81.", "__torch__.evil.Module"),
        (b"ctorch\nload\n(X\x01\x00\x00\x00xtR.", "torch.load"),
        (b"ctorch\nComplexFloatStorage\n.", "torch.ComplexFloatStorage"),
        (b"ctorch._utils\n_rebuild_sparse_tensor\n.", "_rebuild_sparse_tensor"),
        (b"ctorch.storage\n_load_from_bytes\n.", "_load_from_bytes"),
        (b"csubprocess\nPopen\n.", "subprocess.Popen"),
    ] {
        let message = refused(program);
        assert!(message.contains(name) && message.contains("nothing was run"), "{message}");
    }
    // A TorchScript archive names its own classes; what else it names is refused there too.
    let script =
        |program: &[u8]| load(&mut PickleReader::new(program, 1 << 20), true).map(drop).map_err(|error| error.to_string());
    assert!(script(b"c__torch__.evil\nModule\n)\x81.").is_ok());
    assert!(script(b"c__torch__os\nsystem\n.").unwrap_err().contains("__torch__os.system"));
    assert!(script(b"cos\nsystem\n.").is_err());
}

#[test]
fn callables_cannot_be_smuggled() {
    for program in [
        // A storage type, a class or a text called as a function; state for a name; a call with a list for arguments.
        &b"ctorch\nFloatStorage\n)R."[..],
        b"X\x01\x00\x00\x00x)R.",
        b"ccollections\nOrderedDict\n}b.",
        b"ccollections\nOrderedDict\n]R.",
        b"ctorch\nfloat32\n)\x81.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_parameter\n(NtR.",
        b"X\x01\x00\x00\x00xQ.",
        b"(X\x06\x00\x00\x00moduletQ.",
    ] {
        refused(program);
    }
}

#[test]
fn lengths_are_not_believed() {
    for program in [
        &b"X\xff\xff\xff\xff"[..],
        b"X\x10\x00\x00\x00short.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8a\xff",
        b"B\xff\xff\xff\x7f",
        b"cno newline",
        b"I99999999999999999999\n.",
        b"\x80\x09.",
        b"",
        b".",
        b"a.",
        b"(K\x01u.",
        b"}(K\x01u.",
        b"h\x05.",
        b"gx\n.",
        b"0.",
        b"1.",
        b"(0.",
        b"\xff.",
        b"V\xff\xfe\n.",
    ] {
        refused(program);
    }
    let claims = [tensor(0, &[-1], &[1]), tensor(-1, &[1], &[1]), tensor(0, &[1], &[-1]), tensor(0, &[1, 1], &[1])];
    for claim in claims {
        assert!(refused(&[claim, b".".to_vec()].concat()).contains("malformed"));
    }
}

#[test]
fn bombs_cost_what_they_weigh() {
    // A thousand lists, each holding the one before twice: 2^1000 leaves, a few kilobytes here.
    let mut bomb = b"]q\x00".to_vec();
    for _ in 0..1000 {
        bomb.extend(b"(h\x00h\x00lq\x00");
    }
    bomb.push(b'.');
    assert!(run(&bomb).is_ok());
    // Nested a hundred thousand deep, and a list inside itself.
    let deep = [vec![b']'; 100_000], vec![b'a'; 99_999], vec![b'.']].concat();
    assert!(run(&deep).is_ok());
    assert!(run(b"]q\x00h\x00a.").is_ok());
    // More objects, marks, stack or memo than any model has.
    assert!(refused(&vec![b'N'; 1 << 20]).contains("too many objects"));
    assert!(refused(&vec![b'('; 1 << 20]).contains("marks"));
    assert!(refused(&[b"N".to_vec(), vec![b'2'; 1 << 20]].concat()).contains("stack"));
    let memo = (0..1u32 << 19).flat_map(|index| [b"r".to_vec(), index.to_le_bytes().to_vec()].concat());
    assert!(refused(&[b"N".to_vec(), memo.collect()].concat()).contains("memo"));
    // One long list of pairs handed to call after call.
    let mut copies = [b"]((".to_vec(), b"NN\x86".repeat(4000), b"e".to_vec()].concat();
    copies.remove(2);
    copies.extend(b"\x85q\x000ccollections\nOrderedDict\nq\x01");
    copies.extend(b"h\x01h\x00R0".repeat(50_000));
    assert!(refused(&copies).contains("copies"));
    assert!(matches!(load(&mut PickleReader::new(&[b'N'; 100][..], 10), false), Err(PickleError::TooLong(10))));
}

mod random {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that are often opcodes.
    fn program() -> impl Strategy<Value = Vec<u8>> {
        let opcode = prop::sample::select(
            b"().0129qhrjKMJINXU]}tlaesudcRbQ\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x93\x94".to_vec(),
        );
        let name = prop::sample::select(vec![
            &b"ctorch._utils\n_rebuild_tensor_v2\n"[..],
            b"ccollections\nOrderedDict\n)R",
            b"ctorch\nFloatStorage\n",
            b"X\x07\x00\x00\x00storage",
            b"K\x01",
            b"\x8c\x010",
            b"(K\x02K\x03t",
        ]);
        let piece = prop_oneof![4 => opcode.prop_map(|byte| vec![byte]), 3 => name.prop_map(<[u8]>::to_vec), 1 => any::<u8>().prop_map(|byte| vec![byte])];
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_program_ends_in_an_object_or_an_error(program in program()) {
            let _ = run(&[&program[..], b"."].concat());
        }
    }
}
