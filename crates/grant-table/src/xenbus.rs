//! How the two ends of a device find each other: what to do when the other end's state changes.

use crate::spec::xenbus::XenbusState as State;

/// Which end of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The guest's.
    Front,
    /// The one that serves it.
    Back,
}

/// What to do before the new state is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write what the other end needs to know: a back end's features, a front end's rings and ports.
    Publish,
    /// Read what the other end wrote, and begin. If that fails, close instead.
    Connect,
    /// Stop, and let go of everything of the other end's.
    Disconnect,
}

/// What an end in state `own` does when it learns that the other is in state `peer`: the action, and its next state.
/// Nothing, if this is not its turn.
pub fn react(role: Role, own: State, peer: State) -> Option<(Action, State)> {
    let in_use = matches!(
        own,
        State::Initialised | State::Connected | State::Reconfiguring | State::Reconfigured
    );
    match (role, peer) {
        // A front end that begins, also again.
        (Role::Back, State::Initialising) => match own {
            State::Unknown | State::Initialising | State::Closed => {
                Some((Action::Publish, State::InitWait))
            }
            _ => None,
        },
        (Role::Back, State::Initialised | State::Connected) => {
            (own == State::InitWait).then_some((Action::Connect, State::Connected))
        }
        (Role::Front, State::InitWait) => {
            (own == State::Initialising).then_some((Action::Publish, State::Initialised))
        }
        (Role::Front, State::Connected) => {
            (own == State::Initialised).then_some((Action::Connect, State::Connected))
        }
        (_, State::Closing) => {
            (in_use || own == State::InitWait).then_some((Action::Disconnect, State::Closing))
        }
        (Role::Back, State::Closed | State::Unknown) | (Role::Front, State::Closed) => {
            let open = in_use || matches!(own, State::InitWait | State::Closing);
            open.then_some((Action::Disconnect, State::Closed))
        }
        _ => None,
    }
}

/// What an end that has disconnected does next: it is closed.
pub fn closed(own: State) -> Option<State> {
    (own == State::Closing).then_some(State::Closed)
}
