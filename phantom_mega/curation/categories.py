"""What kind of subject a noun phrase names, by its words."""

from __future__ import annotations

import itertools
import re

from phantom_mega.words import word_set

# Heads of phrases; what is not among them is `others`. Annotations without categories are told apart by these.
CATEGORY_WORDS = {
    "human": "person people man men woman women boy girl child children toddler infant teen teenager kid adult baby "
    "individual human head face player singer chef cook waiter worker driver rider cyclist soldier doctor nurse "
    "scientist student teacher dancer host reporter lady gentleman actor actress model guy crowd couple speaker "
    "officer policeman fireman firefighter fisherman farmer guest athlete runner swimmer surfer skier skater musician "
    "guitarist pianist drummer bride groom king queen prince princess monk priest astronaut clown magician artist "
    "painter father mother son daughter brother sister grandmother grandfather businessman businesswoman",
    "animal": "animal dog puppy cat kitten bird horse pony foal cow bull calf fish sheep lamb goat pig piglet lion "
    "lioness tiger leopard cheetah bear panda koala elephant giraffe zebra hippo rhino monkey gorilla chimpanzee ape "
    "rabbit bunny hare squirrel chipmunk hamster hedgehog rat chinchilla deer fawn moose elk duck duckling goose swan "
    "chicken hen rooster chick turkey pigeon dove owl eagle hawk parrot penguin crow peacock flamingo insect butterfly "
    "bee wasp ant beetle spider ladybug dragonfly snail worm snake lizard turtle tortoise crocodile alligator frog "
    "toad whale dolphin shark octopus crab lobster jellyfish seal otter beaver wolf wolves fox raccoon kangaroo camel "
    "llama alpaca donkey bat dinosaur husky retriever terrier poodle corgi shepherd",
    "clothes": "shirt tshirt dress jacket coat hat cap suit top sweater sweatshirt jumper cardigan hoodie pants "
    "trousers jeans leggings skirt shorts shoes boots sneakers sandals heels slippers socks scarf tie bow gloves "
    "mittens uniform vest blouse robe gown kimono sari clothes clothing costume outfit apron belt swimsuit bikini "
    "glasses sunglasses goggles helmet beanie beret necklace bracelet earring ring watch crown veil armor armour cape",
    "product": "car taxi cab van truck lorry bus tram tractor bicycle bike motorcycle motorbike scooter skateboard "
    "boat ship yacht canoe kayak train airplane plane aircraft helicopter drone rocket robot phone smartphone laptop "
    "computer tablet keyboard camera tripod bottle cup mug can jar bag handbag purse backpack suitcase basket chair "
    "armchair stool bench table desk sofa couch bed pillow blanket carpet rug mirror clock vase candle guitar violin "
    "piano cello trumpet drum microphone headphones speakers book newspaper pen pencil knife fork spoon ball football "
    "basketball racket surfboard toy doll teddy kite balloon box lamp lantern umbrella bowl plate pot pan kettle "
    "teapot glass television tv screen monitor lipstick perfume figurine figure sword gun hammer wheel tent",
    "landmark": "building house cottage cabin hut tower skyscraper bridge church cathedral temple mosque pagoda castle "
    "palace monument statue fountain lighthouse windmill barn pyramid arch gate wall street road highway city village "
    "town park garden beach island mountain hill cliff volcano canyon waterfall river lake ocean sea forest field "
    "meadow desert cave stadium kitchen room skyline harbor harbour pier station airport",
    "ip_character": "mascot superhero superheroine supervillain",
}
# A living thing that is drawn is somebody's character: its look is fixed by its makers, as that of a known name is.
# A drawn house stays a landmark, and a shirt with a name on it stays clothes.
_DRAWN = word_set("cartoon animated anime cgi animatronic")
_KNOWN_CHARACTERS = re.compile(
    r"\b(?:mickey mouse|minnie mouse|donald duck|daisy duck|bugs bunny|big buck bunny|tom and jerry|winnie the pooh|"
    r"peppa pig|hello kitty|super mario|sonic the hedgehog|spider ?man|iron ?man|batman|superman|wonder woman|"
    r"captain america|pikachu|pokemon|doraemon|totoro|spongebob|snoopy|garfield|shrek|godzilla|king kong|darth vader|"
    r"yoda|harry potter|buzz lightyear|minions?)\b"
)
_MAY_BE_CHARACTERS = {"human", "animal", "others"}
_AFTER_THE_HEAD = word_set(
    """
    in on with at by near behind under wearing holding riding who of from that which dressed carrying standing sitting
    walking running over beside between inside into against through above below next
    """
)
_CATEGORY_OF = {word: category for category, words in CATEGORY_WORDS.items() for word in words.split()}


def category_of(phrase: str) -> str:
    """One of `data.schema.CATEGORIES` for a noun phrase: by its last known word before what it is in, on or with."""
    head, words = head_words(phrase), _words(phrase)
    known = (_known(word) for part in (head, words) for word in reversed(part))
    found = next(filter(None, known), "others")
    if found in _MAY_BE_CHARACTERS and (_DRAWN & set(head) or _KNOWN_CHARACTERS.search(" ".join(head))):
        return "ip_character"
    return found


def head_words(phrase: str) -> list[str]:
    """Words of a noun phrase, in lower case, before what it is in, on or with: the last one is its head."""
    return list(itertools.takewhile(lambda word: word not in _AFTER_THE_HEAD, _words(phrase)))


def head_of(phrase: str) -> str:
    """The head of a noun phrase: `rabbit` of `a grey rabbit with an apple`; "" of no words."""
    return (head_words(phrase) or _words(phrase) or [""])[-1]


def _words(phrase: str) -> list[str]:
    return "".join(letter if letter.isalpha() else " " for letter in phrase.lower()).split()


def _known(word: str) -> str | None:
    """The category of a word, or of what it is the plural of."""
    singles = (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
    return next((_CATEGORY_OF[one] for one in singles if one in _CATEGORY_OF), None)
