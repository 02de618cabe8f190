//! Verbs by what they ask of their subject and object.

/// What a person does to a thing.
pub(crate) const HANDLE: &str = "
carry mend find/found sell/sold weigh wrap* bury hide/hid/hidden polish borrow
lend/lent return count measure paint sketch clean drop* lift move lose/lost
keep/kept buy/bought bring/brought examine describe repair replace collect
gather deliver pack unpack store label* steal/stole/stolen recover discover
remember forget*/forgot/forgotten inspect trade exchange inherit choose/chose/chosen
refuse accept admire praise study copy hand_over/handed_over take/took/taken
hold/held touch turn_over/turned_over set_aside/set_aside put_away/put_away
clear_away/cleared_away throw_out/threw_out/thrown_out break/broke/broken burn
wash dry oil sharpen test try pawn rent order catalogue photograph restore
abandon rescue guard dust fetch drag* balance fasten loosen cover uncover
shelter mark number stack arrange misplace mention";

/// How a thing comes to be.
pub(crate) const MAKE: &str = "
make/made build/built carve forge cast/cast mould shape weave/wove/woven sew/sewed/sewn
knit* stitch assemble design draw/drew/drawn engrave print bind/bound plane
solder varnish glaze construct fashion whittle hammer cobble_together/cobbled_together
put_together/put_together piece_together/pieced_together";

/// Perception.
pub(crate) const PERCEIVE: &str = "
see/saw/seen hear/heard notice watch recognise observe imagine expect
overhear/overheard glimpse study";

/// What a person does alone.
pub(crate) const PERSON: &str = "
wait sleep/slept laugh sing/sang/sung listen nod* shrug* hesitate smile
weep/wept sigh yawn whistle cough rest kneel/knelt work stand_still/stood_still
look_up/looked_up sit_down/sat_down go_home/went_home/gone_home say_nothing/said_nothing
begin_again/began_again/begun_again give_up/gave_up/given_up agree apologise
complain argue stumble shiver dream pray dance stay_behind/stayed_behind
turn_away/turned_away lie_awake/lay_awake/lain_awake fall_silent/fell_silent/fallen_silent
lose_patience/lost_patience change_the_subject/changed_the_subject
wake_early/woke_early/woken_early keep_quiet/kept_quiet";

/// Going somewhere.
pub(crate) const MOVE: &str = "
walk ride/rode/ridden climb wander hurry travel* return row stroll march limp
run*/ran/run drive/drove/driven sail come_back/came_back/come_back set_out/set_out
drift creep/crept stride/strode/stridden trudge";

/// What weather and light do.
pub(crate) const NATURE: &str = "
rise/rose/risen fall/fell/fallen turn fade settle return pass linger gather
deepen break/broke/broken drift move_on/moved_on hold/held soften lift spread/spread
thin_out/thinned_out close_in/closed_in arrive retreat creep_closer/crept_closer
come_and_go/came_and_went/come_and_gone wane thicken clear die_down/died_down
grow/grew/grown weaken strengthen";

/// Saying that something is so.
pub(crate) const SAY: &str = "
say/said explain insist claim write/wrote/written repeat admit* remark add
reply announce whisper mutter promise report confess warn argue";

/// Holding that something is so.
pub(crate) const THINK: &str = "
believe know/knew/known think/thought suspect fear hope suppose understand/understood
feel/felt guess decide remember learn doubt swear/swore/sworn";

/// What machines do.
pub(crate) const MACHINE: &str = "
run*/ran/run turn stall hum* rattle leak overheat vibrate slip* seize start stop*
slow_down/slowed_down fail respond hold/held creak knock hiss settle drift
close open reset*/reset";
