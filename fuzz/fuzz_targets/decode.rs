//! Arbitrary spellings, kinds and steps: never a panic, never more bytes than a token may have, and the same
//! as the steps said slowly.

#![no_main]

use arbitrary::Arbitrary;
use dskd::decode::{Step, byte_of, decode};
use dskd::error::Error;
use dskd::vocabulary::{Kind, MAX_TOKEN_BYTES};
use libfuzzer_sys::fuzz_target;
use many::Many;

mod many;

#[derive(Arbitrary, Debug)]
struct Input {
    spelling: String,
    repeated: u8,
    kind: u8,
    steps: Many<GivenStep, 12>,
}

#[derive(Arbitrary, Debug)]
enum GivenStep {
    ByteLevel,
    Replace { from: String, to: String },
    ByteFallback,
    Word { prefix: String },
}

fuzz_target!(|input: Input| {
    let spelling = input.spelling.repeat(1 + usize::from(input.repeated));
    let kind = Kind::from_number(input.kind % 6).expect("six kinds");
    let steps: Vec<Step> = input.steps.0.into_iter().map(step).collect();
    let found = decode(7, &spelling, kind, &steps);
    match found {
        Ok((bytes, found)) => {
            assert!(bytes.len() <= spelling.len().max(MAX_TOKEN_BYTES) + steps.len());
            assert!(found == kind || (found == Kind::Byte && bytes.len() == 1), "{found:?}");
            assert_eq!(Some((bytes, found)), slowly(&spelling, kind, &steps));
        }
        Err(Error::NotAByte { id, spelling: said }) => {
            assert!(id == 7 && said == spelling && kind == Kind::Byte);
            assert_eq!(slowly(&spelling, kind, &steps), None);
        }
        Err(Error::TokenTooLong { id, length, limit }) => {
            assert!(id == 7 && length > limit && limit == MAX_TOKEN_BYTES);
        }
        Err(error) => panic!("{error}"),
    }
});

fn step(given: GivenStep) -> Step {
    match given {
        GivenStep::ByteLevel => Step::ByteLevel,
        GivenStep::Replace { from, to } => Step::Replace { from, to },
        GivenStep::ByteFallback => Step::ByteFallback,
        GivenStep::Word { prefix } => Step::Word { prefix },
    }
}

/// None where a token of kind byte is none.
fn slowly(spelling: &str, kind: Kind, steps: &[Step]) -> Option<(Vec<u8>, Kind)> {
    let mut text = spelling.to_owned();
    for step in steps {
        text = match step {
            Step::ByteLevel if kind == Kind::Normal && text.chars().all(|one| byte(one).is_some()) => {
                return Some((text.chars().filter_map(byte).collect(), kind));
            }
            Step::ByteFallback if kind == Kind::Normal || kind == Kind::Byte => {
                let spelt = |byte: &u8| {
                    text == format!("<0x{byte:02X}>")
                        || text == format!("<0x{byte:02x}>")
                        || text.len() == 6
                            && text.to_uppercase() == format!("<0X{byte:02X}>")
                            && text.starts_with("<0x")
                };
                if let Some(byte) = (0..=255).find(spelt) {
                    return Some((vec![byte], Kind::Byte));
                }
                text
            }
            Step::ByteLevel | Step::ByteFallback => text,
            Step::Replace { from, to } => text.split(from.as_str()).collect::<Vec<_>>().join(to),
            Step::Word { prefix } if !prefix.is_empty() && text.starts_with(prefix) => {
                text[prefix.len()..].to_owned()
            }
            Step::Word { .. } => [" ", &text].concat(),
        };
    }
    (kind != Kind::Byte).then(|| (text.into_bytes(), kind))
}

/// GPT-2's table as it was published: printable bytes are themselves, the others follow from U+0100 on.
fn byte(character: char) -> Option<u8> {
    let printable = |byte: &u8| matches!(*byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let found = if u32::from(character) < 0x100 {
        u8::try_from(u32::from(character)).ok().filter(printable)
    } else {
        let number = usize::try_from(u32::from(character) - 0x100).expect("small");
        (0..=255).filter(|byte| !printable(byte)).nth(number)
    };
    assert_eq!(found, byte_of(character));
    found
}
