//! The stack machine.

use std::collections::HashMap;
use std::io::BufRead;

use super::arena::{Arena, Id, MAX_OBJECTS, Object};
use super::globals::{self, Global};
use super::{PickleError, PickleReader};

struct Machine<'a, R> {
    reader: &'a mut PickleReader<R>,
    arena: Arena,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Pairs that calls have copied: one list may be handed to many calls.
    copied: usize,
    /// TorchScript archives may name their own classes.
    script: bool,
}

/// Reads one pickle from the reader's position to its end, and returns its objects and the number of the outermost one.
pub(in crate::models::weights) fn load<R: BufRead>(
    reader: &mut PickleReader<R>,
    script: bool,
) -> Result<(Arena, Id), PickleError> {
    let mut machine =
        Machine { reader, arena: Arena::default(), stack: vec![], marks: vec![], memo: HashMap::new(), copied: 0, script };
    let root = machine.run()?;
    Ok((machine.arena, root))
}

impl<R: BufRead> Machine<'_, R> {
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let opcode = self.reader.u8()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    /// One opcode; the letters are the pickle format's own.
    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            0x80 => self.protocol(),
            0x95 => self.reader.u64().map(drop), // FRAME
            // The stack, marks and the memo
            b'(' => self.mark(),
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => self.top().and_then(|top| self.push_id(top)),
            b'q' => self.reader.u8().and_then(|index| self.put(index.into())),
            b'r' => self.reader.u32().and_then(|index| self.put(index)),
            b'p' => self.memo_line().and_then(|index| self.put(index)),
            0x94 => self.put(self.memo.len() as u32), // MEMOIZE
            b'h' => self.reader.u8().and_then(|index| self.recall(index.into())),
            b'j' => self.reader.u32().and_then(|index| self.recall(index)),
            b'g' => self.memo_line().and_then(|index| self.recall(index)),
            // Constants
            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Bool(true)),
            0x89 => self.push(Object::Bool(false)),
            b'K' => self.reader.u8().and_then(|value| self.push(Object::Int(value.into()))),
            b'M' => self.reader.array().and_then(|bytes| self.push(Object::Int(u16::from_le_bytes(bytes).into()))),
            b'J' => self.reader.array().and_then(|bytes| self.push(Object::Int(i32::from_le_bytes(bytes).into()))),
            b'I' | b'L' => self.decimal(),
            0x8a => self.reader.u8().and_then(|length| self.long(length.into())),
            0x8b => self.reader.u32().and_then(|length| self.long(length)),
            b'G' => self.reader.array::<8>().and_then(|_| self.push(Object::Float)),
            b'F' => self.reader.line().and_then(|_| self.push(Object::Float)),
            b'X' => self.reader.u32().and_then(|length| self.text(length.into())),
            0x8c => self.reader.u8().and_then(|length| self.text(length.into())),
            0x8d => self.reader.u64().and_then(|length| self.text(length)),
            b'V' => self.reader.line().and_then(|text| self.push(Object::Text(text))),
            b'U' | b'C' => self.reader.u8().and_then(|length| self.bytes(opcode, length.into())),
            b'T' | b'B' => self.reader.u32().and_then(|length| self.bytes(opcode, length.into())),
            0x8e => self.reader.u64().and_then(|length| self.bytes(opcode, length)),
            // Containers
            b')' => self.push(Object::Tuple(vec![])),
            b't' => self.pop_mark().and_then(|items| self.push(Object::Tuple(items))),
            0x85 => self.tuple::<1>(),
            0x86 => self.tuple::<2>(),
            0x87 => self.tuple::<3>(),
            b']' | 0x8f => self.push(Object::List(vec![])),
            b'l' | 0x91 => self.pop_mark().and_then(|items| self.push(Object::List(items))),
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' | 0x90 => self.pop_mark().and_then(|items| self.append(items)),
            b'}' => self.push(Object::Dict(vec![])),
            b'd' => {
                let pairs = self.pop_mark().and_then(|items| self.pairs(items))?;
                self.push(Object::Dict(pairs))
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![(key, value)])
            }
            b'u' => self.pop_mark().and_then(|items| self.pairs(items)).and_then(|pairs| self.set_items(pairs)),
            // Names and calls
            b'c' => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                self.global(&module, &name)
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.global(&module, &name)
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = globals::storage(&self.arena, id).map_err(|problem| self.reader.malformed(problem))?;
                self.push(storage)
            }
            b'R' => self.reduce(),
            0x81 => self.new_object(),
            b'b' => self.build(),
            b'i' => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                Err(PickleError::Refused(format!("{module}.{name} (by the opcode INST)")))
            }
            _ => Err(self.reader.malformed(format!("the opcode {opcode:#04x} is not one that weights need"))),
        }
    }

    fn protocol(&mut self) -> Result<(), PickleError> {
        match self.reader.u8()? {
            0..=5 => Ok(()),
            version => Err(self.reader.malformed(format!("pickle protocol {version}"))),
        }
    }

    fn push(&mut self, object: Object) -> Result<(), PickleError> {
        let id = self.arena.add(object).ok_or_else(|| self.reader.malformed("too many objects"))?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), PickleError> {
        if self.stack.len() >= MAX_OBJECTS {
            return Err(self.reader.malformed("the stack is too high"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn mark(&mut self) -> Result<(), PickleError> {
        if self.marks.len() >= MAX_OBJECTS {
            return Err(self.reader.malformed("too many marks"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The top of the stack above the last mark.
    fn top(&self) -> Result<Id, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&id) if self.stack.len() > floor => Ok(id),
            _ => Err(self.reader.malformed("the stack is empty")),
        }
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_text(&mut self) -> Result<String, PickleError> {
        let id = self.pop()?;
        self.arena.text(id).map(str::to_owned).ok_or_else(|| self.reader.malformed("text is expected"))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.reader.malformed("there is no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn put(&mut self, index: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        if self.memo.len() >= MAX_OBJECTS {
            return Err(self.reader.malformed("the memo is too full"));
        }
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), PickleError> {
        let id = *self.memo.get(&index).ok_or_else(|| self.reader.malformed(format!("memo {index} is empty")))?;
        self.push_id(id)
    }

    fn memo_line(&mut self) -> Result<u32, PickleError> {
        self.reader.line()?.parse().map_err(|_| self.reader.malformed("a memo number is expected"))
    }

    /// `INT` and `LONG`: digits, or `00` and `01` for the truth values.
    fn decimal(&mut self) -> Result<(), PickleError> {
        let line = self.reader.line()?;
        let object = match line.as_str() {
            "00" => Object::Bool(false),
            "01" => Object::Bool(true),
            digits => match digits.trim_end_matches('L').parse() {
                Ok(value) => Object::Int(value),
                Err(_) => return Err(self.reader.malformed("a number of at most 64 bits is expected")),
            },
        };
        self.push(object)
    }

    fn long(&mut self, length: u32) -> Result<(), PickleError> {
        let bytes = self.reader.bytes(length.into())?;
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        match value.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(&bytes);
                self.push(Object::Int(i64::from_le_bytes(value)))
            }
            None => self.push(Object::BigInt(bytes)),
        }
    }

    fn text(&mut self, length: u64) -> Result<(), PickleError> {
        let text = self.reader.text(length)?;
        self.push(Object::Text(text))
    }

    /// Python 2's strings (`U`, `T`) are names; Python 3's bytes carry nothing of interest.
    fn bytes(&mut self, opcode: u8, length: u64) -> Result<(), PickleError> {
        let bytes = self.reader.bytes(length)?;
        match (opcode, String::from_utf8(bytes)) {
            (b'U' | b'T', Ok(text)) => self.push(Object::Text(text)),
            _ => self.push(Object::Bytes),
        }
    }

    fn tuple<const N: usize>(&mut self) -> Result<(), PickleError> {
        let mut items = vec![0; N];
        for slot in items.iter_mut().rev() {
            *slot = self.pop()?;
        }
        self.push(Object::Tuple(items))
    }

    fn pairs(&mut self, items: Vec<Id>) -> Result<Vec<(Id, Id)>, PickleError> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.reader.malformed("a key without a value"));
        }
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        let list = self.top()?;
        match self.arena.get_mut(list) {
            Object::List(list) => list.extend(items),
            _ => return Err(self.reader.malformed("something is appended to what is not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, pairs: Vec<(Id, Id)>) -> Result<(), PickleError> {
        let dict = self.top()?;
        match self.arena.get_mut(dict) {
            Object::Dict(items) => items.extend(pairs),
            _ => return Err(self.reader.malformed("something is stored in what is not a dictionary")),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let global = Global::named(module, name, self.script).ok_or_else(|| PickleError::Refused(format!("{module}.{name}")))?;
        self.push(Object::Global(global))
    }

    /// A call: callable and a tuple of arguments.
    fn reduce(&mut self) -> Result<(), PickleError> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Object::Global(global), Object::Tuple(arguments)) = (self.arena.get(callable), self.arena.get(arguments)) else {
            return Err(self.reader.malformed("a call without a name or arguments"));
        };
        if *global == Global::FirstArgument {
            let first = arguments.first().copied().ok_or_else(|| self.reader.malformed("a call without arguments"))?;
            return self.push_id(first);
        }
        let object = globals::call(&self.arena, global, arguments).map_err(|problem| self.reader.malformed(problem))?;
        if let Object::Dict(pairs) = &object {
            self.copied += pairs.len();
            if self.copied > MAX_OBJECTS {
                return Err(self.reader.malformed("too many copies of a list"));
            }
        }
        self.push(object)
    }

    fn new_object(&mut self) -> Result<(), PickleError> {
        let (_arguments, class) = (self.pop()?, self.pop()?);
        match self.arena.get(class) {
            Object::Global(Global::ScriptClass) => self.push(Object::Instance(None)),
            Object::Global(Global::OrderedDict) => self.push(Object::Dict(vec![])),
            _ => Err(self.reader.malformed("an object of something that is not a class")),
        }
    }

    /// Gives an object its state. An ordered dictionary's state is its `_metadata`, which says nothing of weights.
    fn build(&mut self) -> Result<(), PickleError> {
        let (state, target) = (self.pop()?, self.top()?);
        match self.arena.get_mut(target) {
            Object::Instance(attributes) => *attributes = Some(state),
            Object::Dict(_) | Object::Tensor(_) | Object::Opaque => {}
            _ => return Err(self.reader.malformed("state is given to something that has none")),
        }
        Ok(())
    }
}
