"""The vocabulary of the embedded marketplace: looks, users, occasions, prices, and the words for them.

Plain data. Indices into these tuples are the latent attributes of items and people: an item *is* a
(kind, style, audience, theme, tier, brand), its text is written from them, and a person's taste is a
weight on each. All brands are invented.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facet:
    """One value of style, audience, theme or tier.

    `words` are adjectives (style, tier) or noun phrases (audience, theme) that fit into a sentence;
    `lines` are whole sentences of descriptions; `asides` are sentences of reviews by people with that taste.
    """

    words: tuple[str, ...]
    lines: tuple[str, ...]
    asides: tuple[str, ...]


def _facet(table: str) -> Facet:
    """Read `table`: a line of words, then lines of descriptions, and asides marked with ``>``."""
    words, *rest = (line.strip() for line in table.strip().splitlines())
    lines = tuple(line for line in rest if not line.startswith("> "))
    return Facet(tuple(words.split("; ")), lines, tuple(line[2:] for line in rest if line.startswith("> ")))


def _words(table: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in table.strip().replace("\n", ";").split(";"))


MINIMALIST, VINTAGE, RUGGED, PLAYFUL, ELEGANT, INDUSTRIAL, NATURAL, FUTURISTIC = range(8)
STYLES = (
    _facet("""
minimalist; clean-lined; understated; pared-back
  The minimalist design leaves out everything that is not needed.
  Plain surfaces and quiet lines keep it calm to look at.
  No logos, no clutter, only a simple shape.
  A pared-back look that disappears into any room or bag.
  > I keep everything at home plain and uncluttered.
  > Simple, minimalist things suit me best.
  > I avoid logos and loud patterns wherever I can.
"""),
    _facet("""
vintage; retro; old-school; nostalgic
  Its retro lines recall the catalogues of the sixties.
  A vintage finish that looks better with every year.
  Old-school details give it a nostalgic charm.
  It could have come from a good flea market.
  > I love anything with a retro look.
  > Half of my flat is vintage finds.
  > Old-school design wins me over every time.
"""),
    _facet("""
rugged; heavy-duty; tough; hard-wearing
  Built tough, with everything reinforced that could break.
  It shrugs off mud, knocks and bad weather.
  A heavy-duty build that is meant to be used hard.
  Hard-wearing from the first day to the last.
  > I need things that survive mud and rain.
  > I am hard on my gear and want it tough.
  > Heavy-duty stuff is all I buy by now.
"""),
    _facet("""
playful; colourful; cheerful; quirky
  Bright colours and a cheerful pattern make people smile.
  A playful shape with a wink in every detail.
  Quirky touches keep it far from boring.
  Bold colour blocks bring fun to an ordinary day.
  > The brighter and quirkier, the better for me.
  > I like things that are colourful and a bit silly.
  > Grey things bore me, I want colour.
"""),
    _facet("""
elegant; refined; graceful; polished
  Slim proportions and a polished finish make it quietly elegant.
  Refined details catch the eye without shouting.
  It looks graceful next to marble, brass and linen.
  A classic silhouette with a satin sheen.
  > I like elegant things with a bit of polish.
  > Refined, classic pieces are my weakness.
  > It has to look good next to brass and marble.
"""),
    _facet("""
industrial; workshop-style; raw; loft-style
  A raw, unpolished finish gives it a workshop character.
  An industrial look that suits brick walls and concrete floors.
  Dark metal tones and visible joints are part of the design.
  Straight from the loft, with honest rough edges.
  > I am furnishing a loft in an industrial style.
  > Raw metal and concrete are more my thing.
  > I like a workshop look with visible screws.
"""),
    _facet("""
natural; earthy; handmade-looking; rustic
  Earthy tones and an untreated surface bring nature in.
  Each piece looks handmade, with small irregularities.
  A rustic character with visible grain and weave.
  Soft undyed colours make it feel close to nature.
  > I prefer natural materials and earthy colours.
  > Anything handmade and rustic appeals to me.
  > I try to keep plastic out of the house.
"""),
    _facet("""
futuristic; high-tech; sleek; sporty
  Sharp angles and a matt shell give it a futuristic look.
  A high-tech design with reflective accents.
  Sleek, aerodynamic and clearly from tomorrow.
  Technical textures and neon details set the tone.
  > I am a sucker for sleek, high-tech design.
  > Give me neon accents and new technology.
  > It should look as if it came from the future.
"""),
)
CHILDREN, STUDENTS, PROFESSIONALS, FAMILIES, OLDER, BEGINNERS, ENTHUSIASTS = range(7)
AUDIENCES = (
    _facet("""
young children; kids from six years; small hands
  Sized for small hands and free of sharp edges.
  Kids can use it on their own after a minute.
  Tested for children and easy to wipe clean.
  > I mostly shop for my kids.
  > My daughter and her little brother share everything we buy.
  > With two small children at home I look for safe edges first.
"""),
    _facet("""
students; flat-sharers; first-flat owners
  A favourite in shared flats and student rooms.
  It fits a student's desk and a student's week.
  Easy to move from one shared flat to the next.
  > I am a student and share a flat with three others.
  > It lives in my dorm room.
  > Between lectures and a side job I need things that just work.
"""),
    _facet("""
busy professionals; people with full calendars; business travellers
  Popular with professionals who have little time.
  For people with long working days and early meetings.
  Professionals value how quickly it is ready.
  > I use it between client meetings.
  > My work calendar is packed, so I value things that save time.
  > Colleagues at the office have asked me about it.
"""),
    _facet("""
families; the whole household; parents and children
  Large enough for the whole family.
  Parents and children can use it together.
  It takes the daily bustle of a family with ease.
  > The whole family uses it.
  > We are a household of five, so things get used a lot.
  > My partner and the children took it over at once.
"""),
    _facet("""
older adults; grandparents; people with stiff joints
  Light to lift and easy to grip with stiff fingers.
  Grandparents like it because nothing about it is fiddly.
  Comfortable for older hands and backs.
  > At seventy I look for things that are light and easy to grip.
  > I am retired and have the time to compare.
  > My hands are not what they were, so handling matters to me.
"""),
    _facet("""
beginners; first-timers; people who are just starting out
  No experience needed: everything is explained on one card.
  A good first one for beginners.
  A forgiving choice for people who are just starting out.
  > I am a complete beginner at this.
  > It is my first one, so I cannot compare.
  > I only started a few weeks ago and still learn a lot.
"""),
    _facet("""
enthusiasts; experts; people who take it seriously
  Made to the standard that experts expect.
  Enthusiasts will notice the tight tolerances.
  Enthusiasts compare every detail, and this one holds up.
  > I have been doing this for fifteen years and I am picky.
  > As a serious enthusiast I look at the details.
  > I compared the specifications of six models first.
"""),
)
THEMES = (
    _facet("""
camping weekends; nights outdoors; weekends in the hills
  Packs small for nights outdoors.
  It belongs in the car on every camping weekend.
  > We spend most weekends camping.
  > It goes with us into the hills.
"""),
    _facet("""
the daily commute; crowded trains; city life
  Handy on crowded trains and city streets.
  It makes the daily commute lighter.
  > I commute by train every day.
  > City life means I carry everything with me.
"""),
    _facet("""
small flats; tiny rooms; tight corners
  It needs hardly any space in a small flat.
  Folds or stacks away in tight corners.
  > My flat is tiny, so every corner counts.
  > We live on thirty square metres.
"""),
    _facet("""
dinner parties; hosting friends; long evenings with guests
  Guests will ask where it comes from.
  It comes into its own when friends stay for dinner.
  > We have friends over almost every week.
  > I love hosting long dinners.
"""),
    _facet("""
working from home; the home office; long video calls
  It turns a table at home into a proper workplace.
  Long video calls become less tiring with it.
  > I have been working from home for two years.
  > My day is one video call after another.
"""),
    _facet("""
long journeys; overnight flights; road trips
  A reliable companion on long journeys.
  It has been designed around overnight flights and road trips.
  > We travel for a month every year.
  > I spend more nights on the road than at home.
"""),
    _facet("""
low-waste living; a greener household; people who repair things
  Repairable, refillable and shipped without plastic.
  A small step towards a greener household.
  > We try to live with as little waste as possible.
  > I repair things before I buy new ones.
"""),
    _facet("""
birthdays; gift-giving; birthday surprises
  It arrives in a gift box with a blank card.
  A thoughtful present for a birthday.
  > I give things like this as presents.
  > It was a birthday gift for my sister.
"""),
    _facet("""
rainy days with the children; family afternoons; playtime
  It saves many a rainy afternoon with the children.
  Family afternoons fly by with it.
  > Rainy days with the children are less dull now.
  > We play together every afternoon.
"""),
    _facet("""
training; keeping fit; morning workouts
  Ready for the morning workout before the coffee is.
  It keeps up with a serious training plan.
  > I train before work four times a week.
  > Keeping fit matters more to me every year.
"""),
    _facet("""
creative evenings; hobby projects; making things
  It invites you to try out ideas.
  A good start for hobby projects and creative evenings.
  > My evenings belong to creative projects.
  > I like making things myself.
"""),
    _facet("""
life with animals; homes with pets; busy pet households
  Fur, claws and muddy paws do not harm it.
  Made for homes where animals are family.
  > With a dog and two cats nothing stays clean.
  > Our animals come first.
"""),
    _facet("""
quiet evenings; unwinding; slow Sundays
  It sets the mood for a quiet evening.
  Made for slow Sundays at home.
  > I unwind with a book in the evening.
  > Slow Sundays at home are my luxury.
"""),
)
TIERS = (
    _facet("""
affordable; low-priced; good-value
  A fair price without frills.
  Good value for a small budget.
  It costs less than a dinner out.
  > I never spend much on such things.
  > My budget is tight, so price comes first.
"""),
    _facet("""
well-made; solid; dependable
  Solid quality at a sensible price.
  The sensible choice between cheap and extravagant.
  > I look for a sensible middle between price and quality.
  > I would rather buy decent quality once.
"""),
    _facet("""
premium; luxurious; top-of-the-range
  Premium quality with a ten-year guarantee.
  The top of the range, finished by hand.
  A luxury that is meant to last.
  > I gladly pay more for the best.
  > For premium quality I save up.
  > Cheap versions only disappoint me.
"""),
)
BRANDS = _words("""
Tarnleaf; Quillora; Brindlemoor; Velkaro; Ostrande; Nimbrook; Hearthby; Pellwick; Zarvane
Corrigale; Lumefold; Mossgrave; Kestrova; Dunmarrow; Aldervane; Sablewick; Thistlerow; Wrenhallow
Orbellin; Polderay; Grinthal; Yarrowfeld; Calderoy; Fjelunde; Juniplex; Marrowby; Solvennet
Tindrake; Umberlyn; Vintrelle; Hollowmere; Brackenby; Tolvane; Emberquay; Larkstow; Pinemarch
""")
SERIES = _words("""
Alto; Birch; Cove; Drift; Ember; Fable; Grove; Harbour; Iris; Juno
Kite; Lark; Meadow; North; Onyx; Pebble; Quartz; Ridge; Slate; Tern
Vale; Willow; Zephyr; Atlas; Beacon; Cinder; Dune; Fern; Heron; Lumen
""")
COLOURS = _words("""
moss green; charcoal; sand; navy; terracotta; ivory; slate blue
mustard; plum; graphite; sage; copper; ink black; coral
""")
