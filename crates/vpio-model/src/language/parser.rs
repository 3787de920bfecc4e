use chumsky::pratt::{infix, left, none, prefix};
use chumsky::prelude::*;

use super::Diagnostic;
use super::syntax::{
    Access, Binary, Expr, ExprKind, Fetch, Item, Kind, Name, Policy, Span, Statement,
    StatementKind, TableItem, Trigger, Unary,
};

/// Brackets inside brackets: what bounds the parser's recursion.
const MAX_NESTING: usize = 24;
/// Bytes of a text without a semicolon or a brace: what bounds the depth of an expression.
const MAX_RUN: usize = 1024;
/// Bytes of a text.
const MAX_TEXT: usize = 1 << 18;

type Extra<'a> = extra::Err<Rich<'a, char>>;

/// Reads a text. All the syntax errors that were found, if there are any.
pub fn parse(text: &str) -> Result<Vec<Item>, Vec<Diagnostic>> {
    bounded(text).map_err(|error| vec![error])?;
    let (items, errors) = model().parse(text).into_output_errors();
    match items {
        Some(items) if errors.is_empty() => Ok(items),
        _ => Err(errors.iter().map(describe).collect()),
    }
}

fn describe(error: &Rich<'_, char>) -> Diagnostic {
    let mut span = error.span().into_range();
    span.end = span.end.max(span.start + 1);
    // What may stand between any two words is not worth saying.
    let blank = |text: &String| ["'#'", "something else"].contains(&text.as_str());
    let mut expected: Vec<String> = error.expected().map(ToString::to_string).collect();
    expected.retain(|text| !blank(text));
    expected.sort();
    expected.dedup();
    let found = error
        .found()
        .map_or_else(|| "the end of the text".to_owned(), |c| format!("{c:?}"));
    match error.reason() {
        chumsky::error::RichReason::Custom(message) => Diagnostic::new(message.clone(), &span),
        chumsky::error::RichReason::ExpectedFound { .. } => {
            let message = format!("unexpected {found}");
            Diagnostic::new(message, &span).label(format!("expected {}", expected.join(", ")))
        }
    }
}

/// Refuses what could exhaust the stack.
fn bounded(text: &str) -> Result<(), Diagnostic> {
    if text.len() > MAX_TEXT {
        return Err(Diagnostic::new(
            "the text is too long",
            &(MAX_TEXT..MAX_TEXT),
        ));
    }
    let (mut nesting, mut run) = (0_usize, 0_usize);
    for (at, byte) in text.bytes().enumerate() {
        run += 1;
        match byte {
            b'(' | b'[' => nesting += 1,
            b')' | b']' => nesting = nesting.saturating_sub(1),
            b'{' => (nesting, run) = (nesting + 1, 0),
            b'}' => (nesting, run) = (nesting.saturating_sub(1), 0),
            b';' | b'\n' if byte == b';' || comment_before(text, at) => run = 0,
            _ => {}
        }
        if nesting > MAX_NESTING {
            return Err(Diagnostic::new("nested too deeply", &(at..at + 1)));
        }
        if run > MAX_RUN {
            return Err(Diagnostic::new("this goes on for too long", &(at..at + 1)));
        }
    }
    Ok(())
}

/// Whether the line that ends at `end` is a comment only.
fn comment_before(text: &str, end: usize) -> bool {
    let line = text.get(..end).and_then(|text| text.rsplit('\n').next());
    line.is_some_and(|line| line.trim_start().starts_with('#'))
}

fn trivia<'a>() -> impl Parser<'a, &'a str, (), Extra<'a>> + Clone {
    let comment = just('#')
        .then(any().and_is(just('\n').not()).repeated())
        .ignored();
    let space = any().filter(|c: &char| c.is_whitespace()).ignored();
    comment.or(space).repeated().ignored().boxed()
}

fn sign<'a>(text: &'static str) -> impl Parser<'a, &'a str, (), Extra<'a>> + Clone {
    just(text).ignored().then_ignore(trivia()).boxed()
}

fn keyword<'a>(word: &'static str) -> impl Parser<'a, &'a str, (), Extra<'a>> + Clone {
    text::ascii::keyword(word)
        .ignored()
        .then_ignore(trivia())
        .labelled(format!("`{word}`"))
        .boxed()
}

fn word<'a>() -> impl Parser<'a, &'a str, (String, Span), Extra<'a>> + Clone {
    text::ascii::ident()
        .map_with(|word: &str, e| {
            let span: SimpleSpan = e.span();
            (word.to_owned(), span.into_range())
        })
        .then_ignore(trivia())
        .labelled("a name")
        .boxed()
}

fn plain<'a>() -> impl Parser<'a, &'a str, Name, Extra<'a>> + Clone {
    word()
        .map(|(word, span)| Name {
            word,
            index: None,
            span,
        })
        .boxed()
}

fn string<'a>() -> impl Parser<'a, &'a str, String, Extra<'a>> + Clone {
    none_of("\"\n")
        .repeated()
        .to_slice()
        .map(str::to_owned)
        .delimited_by(just('"'), just('"'))
        .then_ignore(trivia())
        .labelled("a text in quotes")
        .boxed()
}

fn number<'a>() -> impl Parser<'a, &'a str, u64, Extra<'a>> + Clone {
    let digits = |radix: u32| {
        any()
            .filter(move |c: &char| c.is_digit(radix) || *c == '_')
            .repeated()
            .at_least(1)
            .to_slice()
    };
    let value = move |radix: u32| {
        digits(radix).try_map(move |text: &str, span| {
            u64::from_str_radix(&text.replace('_', ""), radix)
                .map_err(|_| Rich::custom(span, "this number has no value of 64 bits"))
        })
    };
    let hex = just("0x").ignore_then(value(16));
    let binary = just("0b").ignore_then(value(2));
    hex.or(binary)
        .or(value(10))
        .then_ignore(trivia())
        .labelled("a number")
        .boxed()
}

fn name<'a>(
    expr: impl Parser<'a, &'a str, Expr, Extra<'a>> + Clone + 'a,
) -> impl Parser<'a, &'a str, Name, Extra<'a>> + Clone {
    let index = expr.delimited_by(sign("["), sign("]"));
    word()
        .then(index.or_not())
        .map(|((word, span), index)| Name {
            word,
            index: index.map(Box::new),
            span,
        })
        .boxed()
}

fn join(operator: Binary) -> impl Fn(Expr, (), Expr) -> Expr + Clone {
    move |left, (), right| Expr {
        span: left.span.start..right.span.end,
        kind: ExprKind::Binary(operator, Box::new(left), Box::new(right)),
    }
}

fn expression<'a>() -> impl Parser<'a, &'a str, Expr, Extra<'a>> + Clone {
    recursive(|expr| {
        let arguments = expr
            .clone()
            .separated_by(sign(","))
            .collect::<Vec<_>>()
            .delimited_by(sign("("), sign(")"));
        let name = name(expr.clone());
        let call = plain()
            .then(arguments)
            .map(|(name, arguments)| ExprKind::Call(name, arguments));
        let is = name
            .clone()
            .then_ignore(keyword("is"))
            .then(plain())
            .map(|(machine, state)| ExprKind::Is(machine, state));
        let parentheses = expr.delimited_by(sign("("), sign(")"));
        let atom = choice((
            number().map(ExprKind::Number),
            call,
            is,
            name.map(ExprKind::Name),
        ))
        .map_with(|kind, e| {
            let span: SimpleSpan = e.span();
            Expr {
                kind,
                span: span.into_range(),
            }
        })
        .or(parentheses)
        .labelled("an expression")
        .boxed();
        let unary = |operator: Unary| {
            move |(), right: Expr| Expr {
                span: right.span.start.saturating_sub(1)..right.span.end,
                kind: ExprKind::Unary(operator, Box::new(right)),
            }
        };
        // A sign that is not the start of a longer one.
        let alone = |text: &'static str, not: &'static str| {
            just(text)
                .then(one_of(not).not().rewind())
                .ignored()
                .then_ignore(trivia())
                .boxed()
        };
        use Binary as B;
        // Each level's operators fold their operands apart, as Rust's do.
        macro_rules! op {
            ($assoc:expr, $parser:expr, $operator:expr) => {
                infix($assoc, $parser, {
                    let join = join($operator);
                    move |left, op, right, _: &mut _| join(left, op, right)
                })
            };
        }
        let negate = (unary(Unary::Not), unary(Unary::Invert));
        atom.pratt((
            (
                prefix(11, alone("!", "="), move |op, right, _: &mut _| {
                    negate.0(op, right)
                }),
                prefix(11, sign("~"), move |op, right, _: &mut _| {
                    negate.1(op, right)
                }),
                op!(left(10), sign("*"), B::Multiply),
                op!(left(10), sign("/"), B::Divide),
                op!(left(10), sign("%"), B::Remainder),
                op!(left(9), sign("+"), B::Add),
                op!(left(9), alone("-", ">"), B::Subtract),
            ),
            (
                op!(left(8), sign("<<"), B::ShiftLeft),
                op!(left(8), sign(">>"), B::ShiftRight),
                op!(left(7), alone("&", "&"), B::BitAnd),
                op!(left(6), sign("^"), B::BitXor),
                op!(left(5), alone("|", "|"), B::BitOr),
            ),
            (
                op!(none(4), sign("=="), B::Equal),
                op!(none(4), sign("!="), B::NotEqual),
                op!(none(4), sign("<="), B::LessEqual),
                op!(none(4), sign(">="), B::GreaterEqual),
                op!(none(4), alone("<", "<="), B::Less),
                op!(none(4), alone(">", ">="), B::Greater),
                op!(left(3), sign("&&"), B::And),
                op!(left(2), sign("||"), B::Or),
            ),
        ))
    })
}

fn policy<'a>() -> impl Parser<'a, &'a str, Policy, Extra<'a>> + Clone {
    choice((
        keyword("ignore").to(Policy::Ignore),
        keyword("fail").to(Policy::Fail),
        keyword("machine_check").to(Policy::MachineCheck),
        keyword("reset").to(Policy::Reset),
    ))
    .boxed()
}

fn access<'a>() -> impl Parser<'a, &'a str, Access, Extra<'a>> + Clone {
    choice((
        keyword("read").to(Access::Read),
        keyword("write").to(Access::Write),
    ))
    .boxed()
}

fn statements<'a>() -> impl Parser<'a, &'a str, Vec<Statement>, Extra<'a>> + Clone {
    recursive(|block| {
        let expr = expression().boxed();
        let name = name(expr.clone());
        let assign = name
            .clone()
            .then_ignore(alone_equals())
            .then(expr.clone())
            .then_ignore(sign(";"))
            .map(|(name, value)| StatementKind::Assign(name, value));
        let goto = name
            .clone()
            .then_ignore(sign("->"))
            .then(plain())
            .then_ignore(sign(";"))
            .map(|(machine, state)| StatementKind::Goto(machine, state));
        let condition = keyword("if").ignore_then(expr.clone());
        let conditional = condition
            .clone()
            .then(block.clone())
            .then(
                keyword("else")
                    .ignore_then(condition)
                    .then(block.clone())
                    .repeated()
                    .at_most(32)
                    .collect::<Vec<_>>(),
            )
            .then(keyword("else").ignore_then(block.clone()).or_not())
            .map(|(((condition, then), others), last)| {
                let otherwise = others.into_iter().rfold(
                    last.unwrap_or_default(),
                    |otherwise, (condition, then)| {
                        let span = condition.span.clone();
                        let kind = StatementKind::If(condition, then, otherwise);
                        vec![Statement { kind, span }]
                    },
                );
                StatementKind::If(condition, then, otherwise)
            });
        let patterns = expr
            .clone()
            .separated_by(sign(","))
            .at_least(1)
            .collect::<Vec<_>>();
        let arm = patterns.then_ignore(sign("=>")).then(block.clone());
        let select = keyword("match").ignore_then(expr.clone()).then(
            arm.repeated()
                .collect::<Vec<_>>()
                .delimited_by(sign("{"), sign("}")),
        );
        let range = expr.clone().then_ignore(sign("..")).then(expr.clone());
        let repeat = keyword("for")
            .ignore_then(plain())
            .then_ignore(keyword("in"))
            .then(range)
            .then(block)
            .map(|((name, (first, end)), body)| StatementKind::For(name, first, end, body));
        let require = keyword("require")
            .ignore_then(expr.clone())
            .then(keyword("else").ignore_then(policy()).or_not())
            .then_ignore(sign(","))
            .then(string())
            .then_ignore(sign(";"))
            .map(|((condition, policy), reason)| StatementKind::Require(condition, policy, reason));
        let check = keyword("check")
            .ignore_then(name.clone())
            .then_ignore(sign(";"))
            .map(StatementKind::Check);
        let which = choice((
            keyword("from")
                .ignore_then(expr.clone())
                .then_ignore(keyword("to"))
                .then(expr.clone())
                .map(|(from, to)| Fetch::Range(from, to)),
            keyword("bits").ignore_then(expr.clone()).map(Fetch::Bits),
            keyword("chain").ignore_then(name.clone()).map(Fetch::Chain),
        ));
        let fetch = keyword("fetch")
            .ignore_then(name.clone())
            .then(which)
            .then_ignore(sign(";"))
            .map(|(table, which)| StatementKind::Fetch(table, which));
        let forward = keyword("forward")
            .ignore_then(expr.clone())
            .then_ignore(sign(";"))
            .map(StatementKind::Forward);
        let reset = keyword("reset")
            .ignore_then(sign(";"))
            .to(StatementKind::Reset);
        let put = keyword("put")
            .ignore_then(name.clone())
            .then_ignore(sign(","))
            .then(expr.clone())
            .then(keyword("times").ignore_then(expr.clone()).or_not())
            .then_ignore(sign(";"))
            .map(|((register, value), times)| StatementKind::Put(register, value, times));
        let get = keyword("get")
            .ignore_then(name.clone())
            .then_ignore(sign(","))
            .then(name)
            .then_ignore(sign(";"))
            .map(|(variable, register)| StatementKind::Get(variable, register));
        choice((
            conditional.boxed(),
            select
                .map(|(subject, arms)| StatementKind::Match(subject, arms))
                .boxed(),
            repeat.boxed(),
            require.boxed(),
            check.boxed(),
            fetch.boxed(),
            forward.boxed(),
            reset.boxed(),
            put.boxed(),
            get.boxed(),
            goto.boxed(),
            assign.boxed(),
        ))
        .map_with(|kind, e| {
            let span: SimpleSpan = e.span();
            Statement {
                kind,
                span: span.into_range(),
            }
        })
        .labelled("a statement")
        .repeated()
        .collect::<Vec<_>>()
        .delimited_by(sign("{"), sign("}"))
        .boxed()
    })
}

/// `=` that is not the start of `==`.
fn alone_equals<'a>() -> impl Parser<'a, &'a str, (), Extra<'a>> + Clone {
    just('=')
        .then(just('=').not().rewind())
        .ignored()
        .then_ignore(trivia())
        .boxed()
}

fn table_items<'a>() -> impl Parser<'a, &'a str, Vec<TableItem>, Extra<'a>> + Clone {
    let expr = expression().boxed();
    let field = choice((keyword("field").to(false), keyword("address").to(true)))
        .then(plain())
        .then_ignore(keyword("at"))
        .then(expr.clone())
        .then_ignore(sign(":"))
        .then(expr.clone())
        .map(|(((address, name), offset), width)| TableItem::Field {
            name,
            address,
            offset,
            width,
        });
    let buffer = access()
        .then(plain())
        .then_ignore(sign(","))
        .then(expr.clone())
        .then(keyword("if").ignore_then(expr.clone()).or_not())
        .map(
            |(((access, address), length), condition)| TableItem::Buffer {
                access,
                address,
                length,
                condition,
            },
        );
    let follow = keyword("follow")
        .ignore_then(plain())
        .then_ignore(sign(","))
        .then(expr.clone())
        .then_ignore(keyword("as"))
        .then(name(expr.clone()))
        .map(|((address, count), table)| TableItem::Follow {
            address,
            count,
            table,
        });
    let device = keyword("device")
        .ignore_then(expr.clone())
        .then_ignore(sign(".."))
        .then(expr.clone())
        .map(|(first, end)| TableItem::Device(first, end));
    let one = |word| keyword(word).ignore_then(expr.clone());
    choice((
        field.boxed(),
        buffer.boxed(),
        follow.boxed(),
        device.boxed(),
        one("while").map(TableItem::While),
        one("last").map(TableItem::Last),
        one("wrap").map(TableItem::Wrap),
        one("done").map(TableItem::Done),
    ))
    .then_ignore(sign(";"))
    .labelled("a line of a table")
    .repeated()
    .collect::<Vec<_>>()
    .delimited_by(sign("{"), sign("}"))
}

fn model<'a>() -> impl Parser<'a, &'a str, Vec<Item>, Extra<'a>> {
    let item = recursive(|item| {
        let expr = expression().boxed();
        let name = name(expr.clone());
        let block = statements().boxed();
        let title = keyword("model")
            .ignore_then(string())
            .then_ignore(sign(";"))
            .map(Item::Model);
        let deny = keyword("deny")
            .ignore_then(policy())
            .then_ignore(sign(";"))
            .map(Item::Deny);
        let kind = choice((
            keyword("port").to(Kind::Port),
            keyword("memory").to(Kind::Memory),
            keyword("config").to(Kind::Config),
        ));
        let space = keyword("space")
            .ignore_then(plain())
            .then_ignore(sign(":"))
            .then(
                kind.then(keyword("bar").ignore_then(expr.clone()).or_not())
                    .separated_by(sign(","))
                    .at_least(1)
                    .collect::<Vec<_>>(),
            )
            .then_ignore(keyword("size"))
            .then(expr.clone())
            .then_ignore(sign(";"))
            .map(|((name, places), size)| Item::Space { name, places, size });
        let constant = keyword("const")
            .ignore_then(plain())
            .then_ignore(alone_equals())
            .then(expr.clone())
            .then_ignore(sign(";"))
            .map(|(name, value)| Item::Const(name, value));
        let machine = keyword("machine")
            .ignore_then(name.clone())
            .then(
                plain()
                    .separated_by(sign(","))
                    .allow_trailing()
                    .at_least(1)
                    .collect::<Vec<_>>()
                    .delimited_by(sign("{"), sign("}")),
            )
            .map(|(name, states)| Item::Machine(name, states));
        let variable = choice((keyword("var").to(false), keyword("address").to(true)))
            .then(name.clone())
            .then_ignore(sign(":"))
            .then(expr.clone())
            .then(alone_equals().ignore_then(expr.clone()).or_not())
            .then_ignore(sign(";"))
            .map(|(((address, name), bits), initial)| Item::Variable {
                name,
                address,
                bits,
                initial,
            });
        let range = expr.clone().then_ignore(sign("..")).then(expr.clone());
        let repeat = keyword("for")
            .ignore_then(plain())
            .then_ignore(keyword("in"))
            .then(range.clone())
            .then(
                item.repeated()
                    .collect::<Vec<_>>()
                    .delimited_by(sign("{"), sign("}")),
            )
            .map(|((name, (first, end)), body)| Item::For(name, first, end, body));
        let direction = choice((
            keyword("ro").to(Access::Read),
            keyword("wo").to(Access::Write),
        ));
        let register = keyword("register")
            .ignore_then(name.clone())
            .then_ignore(alone_equals())
            .then(plain())
            .then(expr.clone().delimited_by(sign("["), sign("]")))
            .then_ignore(sign(":"))
            .then(expr.clone())
            .then(direction.or_not())
            .then(keyword("when").ignore_then(expr.clone()).or_not())
            .then_ignore(sign(";"))
            .map(
                |(((((name, space), offset), width), direction), when)| Item::Register {
                    name,
                    space,
                    offset,
                    width,
                    direction,
                    when,
                },
            );
        let free = keyword("free")
            .ignore_then(plain())
            .then(range.delimited_by(sign("["), sign("]")))
            .then(access().or_not())
            .then_ignore(sign(";"))
            .map(|((space, (first, end)), direction)| Item::Free {
                space,
                first,
                end,
                direction,
            });
        let transfer = keyword("transfer")
            .ignore_then(name.clone())
            .then_ignore(sign(":"))
            .then(access())
            .then(expr.clone())
            .then_ignore(sign(","))
            .then(expr.clone())
            .then_ignore(keyword("while"))
            .then(expr.clone())
            .then_ignore(sign(";"))
            .map(
                |((((name, access), address), length), active)| Item::Transfer {
                    name,
                    access,
                    address,
                    length,
                    active,
                },
            );
        let at = keyword("at")
            .ignore_then(expr.clone())
            .then_ignore(sign(","))
            .then(expr.clone());
        let table = keyword("table")
            .ignore_then(name.clone())
            .then(at.or_not())
            .then_ignore(keyword("max"))
            .then(expr.clone())
            .then(keyword("head").ignore_then(expr.clone()).or_not())
            .then_ignore(keyword("entry"))
            .then(expr.clone())
            .then(table_items())
            .map(|(((((name, at), max), head), entry), body)| Item::Table {
                name,
                at,
                max,
                head,
                entry,
                body,
            });
        let trigger = choice((
            access()
                .then(name)
                .map(|(access, register)| Trigger::Access(access, register)),
            keyword("interrupt").to(Trigger::Interrupt),
            keyword("timer").to(Trigger::Timer),
        ));
        let on = keyword("on")
            .ignore_then(trigger.map_with(|trigger, e| {
                let span: SimpleSpan = e.span();
                (trigger, span.into_range())
            }))
            .then(block.clone())
            .map(|((trigger, span), body)| Item::On(trigger, body, span));
        let always = keyword("always").ignore_then(expr.clone().map(|expr| (expr, None)));
        let stable = keyword("stable").ignore_then(
            expr.clone()
                .then_ignore(keyword("while"))
                .then(expr.clone().map(Some)),
        );
        let promise = choice((always, stable))
            .then_ignore(sign(","))
            .then(string())
            .then_ignore(sign(";"))
            .map(|((expr, during), why)| Item::Promise { expr, during, why });
        let reusable = keyword("reusable")
            .ignore_then(keyword("when"))
            .ignore_then(expr)
            .then_ignore(sign(";"))
            .map(Item::Reusable);
        let save = keyword("save").ignore_then(block.clone()).map(Item::Save);
        let restore = keyword("restore").ignore_then(block).map(Item::Restore);
        choice((
            title.boxed(),
            deny.boxed(),
            space.boxed(),
            constant.boxed(),
            machine.boxed(),
            variable.boxed(),
            repeat.boxed(),
            register.boxed(),
            free.boxed(),
            transfer.boxed(),
            table.boxed(),
            on.boxed(),
            promise.boxed(),
            reusable.boxed(),
            save.boxed(),
            restore.boxed(),
        ))
        .labelled("a declaration")
        .boxed()
    });
    trivia()
        .ignore_then(item.repeated().collect::<Vec<_>>())
        .then_ignore(end())
}
